"""One launch per number of processes runs every part of every layout; the tests compare what the ranks wrote."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "worker"
sys.path.insert(0, str(WORKER))  # tests import assembly and tiny as the worker does
PARTS = "parity,engine,checkpoints,dense,rl_gradient,reward_model,refresh,grading,vllm_ranks"
# In this order: a layout may load the checkpoint of a layout before it.
LAUNCHES = (
    (4, "pp2_ep2,vpp2_overlap,ep4,tp2_ep2,tp2_pp2,pp4"),
    (1, "single,recompute"),
    (2, "pp2,ep2,vpp2,tp2,dp2,dp2_overlap"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("multi")


@pytest.fixture(scope="session")
def results(once: Callable, warm: Callable[..., str]) -> Path:
    """Folder of the worker's results."""

    def make(folder: Path) -> None:
        for processes, layouts in LAUNCHES:
            warm(WORKER / "main.py", processes, folder, PARTS, layouts, timeout_s=420)

    return once("layouts", make)
