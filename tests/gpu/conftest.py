"""Steps of a schedule through the command line, each its own process."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from r1train.config.steps import plan_steps

sys.path.insert(0, str(Path(__file__).parent / "worker"))  # for mla_model


@pytest.fixture(scope="session")
def run_steps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Iterable[str], list[str]], Path]:
    """run_steps(ids of steps, overrides) -> root of the run folders."""

    def run(steps: Iterable[str], overrides: list[str]) -> Path:
        folder = tmp_path_factory.mktemp("schedule")
        for planned in plan_steps([*overrides, f"root={folder}"]):
            if planned.step.id in steps:
                command = [sys.executable, "-m", "r1train", *planned.overrides]
                done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return folder

    return run
