"""One undisturbed tiny schedule, whose policy after a short cold start every test of an RL stage begins with."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "worker"
sys.path.insert(0, str(WORKER))  # tests import tiny_schedule

from tiny_schedule import Undisturbed  # noqa: E402

GRPO = (
    "experiment=tiny",
    "stage=grpo",
    "step=rl1",
    "evaluate_after=false",
    "stage.prompts_per_step=4",
    "stage.samples_per_prompt=4",
    "stage.minibatches_per_step=2",
    "stage.reference_refresh_steps=4",
    "rollout.max_response_tokens=32",
)


@pytest.fixture(scope="session")
def schedule(once: Callable) -> Iterator[Undisturbed]:
    """Started; one for all pytest workers."""
    started: list[subprocess.Popen] = []
    folder = once("schedule", lambda folder: started.append(Undisturbed(folder).start()))
    yield Undisturbed(folder)
    for running in started:
        if "PYTEST_XDIST_WORKER" not in os.environ:  # no test is left that could wait for it
            running.terminate()
        running.wait()


@pytest.fixture(scope="session")
def policy(schedule: Undisturbed) -> Path:
    """The schedule's root once it has the data and the step cold_start."""
    schedule.wait_for("cold_start/result.json")
    return schedule.root


@pytest.fixture(scope="session")
def grpo(policy: Path, run_warm: Callable) -> Callable:
    """grpo(root, *overrides, fault="none", at=0) -> what is left of a run of the stage in root/rl1.

    launch: run_torchrun where torchrun itself has a part; otherwise the ranks are forks, as a schedule's are.
    """

    def run(root: Path, *overrides: str, fault: str = "none", at: int = 0, launch: Callable = run_warm):
        start = [f"root={root}", f"data.dir={policy / 'data'}", f"stage.init_from={policy / 'cold_start'}"]
        return launch(WORKER / "engine_faults.py", 2, fault, at, *GRPO, *start, *overrides)

    return run


@pytest.fixture(scope="session")
def plain(once: Callable, grpo: Callable) -> Path:
    """Six updates by nothing but the settings above, with a limit that a right engine is far from."""

    def make(root: Path) -> None:
        done = grpo(root, "stage.steps=6", "stage.save_every_steps=6", "rl.stop_if.logprob_gap_max_above=0.01")
        assert done.returncode == 0, done.output[-4000:]

    return once("plain", make) / "rl1"
