"""One process as a world of its own: megatron-core on CPU, with the model of the multi-process tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "multi" / "worker"))  # for tiny and shapes


@pytest.fixture(scope="session")
def cuda_answers() -> dict[str, Callable]:
    """What the CPU stand-ins put into torch.cuda; it is taken out again, because other tests ask for real GPUs."""
    import torch

    from r1train.dist import cpu

    before = dict(vars(torch.cuda))
    with pytest.MonkeyPatch.context() as patch:
        # Collection has imported megatron.core with other test files. The order matters for what torch.compile wraps,
        # and tests/conftest.py has switched that off.
        patch.setattr(cpu, "sys", SimpleNamespace(modules={}), raising=False)
        cpu.install()
    # A name that is new is a module of torch that megatron-core imported.
    answers = {name: value for name, value in vars(torch.cuda).items() if value is not before.get(name, value)}
    for name in answers:
        setattr(torch.cuda, name, before[name])
    assert "device_count" in answers
    return answers


@pytest.fixture(scope="module")
def device(cuda_answers: dict[str, Callable]) -> Iterator:
    """The CPU, with megatron-core's groups of one process until the module's tests are done."""
    import torch
    from tiny import LAYOUTS, config

    from r1train.dist.init import close_processes, init_processes, select_device

    with pytest.MonkeyPatch.context() as patch:
        for name, answer in cuda_answers.items():
            patch.setattr(torch.cuda, name, answer)
        cluster = config("single").cluster
        found = select_device(cluster)
        init_processes(found, LAYOUTS["single"], cluster)
        from r1train.dist.seed import seed_all

        seed_all(1)
        yield found
        close_processes()
