"""One process as a world of its own: megatron-core on CPU, with the model of the multi-process tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "multi" / "worker"))  # for tiny


@pytest.fixture(scope="module")
def device() -> Iterator:
    """The CPU, with megatron-core's groups of one process until the module's tests are done."""
    from tiny import LAYOUTS, config

    from r1train.dist.init import close_processes, init_processes, select_device

    cluster = config("single").cluster
    found = select_device(cluster)
    init_processes(found, LAYOUTS["single"], cluster)
    from r1train.dist.seed import seed_all

    seed_all(1)
    yield found
    close_processes()
