"""megatron-core as on a machine without CUDA, before any test of this folder imports it."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cpu_stand_ins():
    from r1train.dist import cpu

    cpu.install()
