"""A tiny policy after a short cold start, and a launcher of GRPO on it, for tests of RL stages."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "worker" / "engine_faults.py"
SCHEDULE = (
    "schedule.steps=[{id:prepare,stage:prepare,title:prepare},{id:pretrain,stage:pretrain,title:pretrain},"
    "{id:cold_start,stage:sft,title:SFT,init_from:pretrain}]"
)
# Just enough training that some samples end by themselves and some at the budget.
TRAINED = (
    "data.worked_examples=500",
    "per_stage.pretrain.stage.steps=40",
    "per_stage.pretrain.stage.save_every_steps=40",
    "per_stage.cold_start.stage.steps=20",
    "per_stage.cold_start.stage.save_every_steps=20",
    "per_stage.cold_start.evaluate_after=false",
)
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
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root with the data and the step cold_start."""
    root = tmp_path_factory.mktemp("policy")
    command = [sys.executable, "-m", "r1train", "experiment=tiny", SCHEDULE, *TRAINED, f"root={root}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


@pytest.fixture(scope="session")
def grpo(policy: Path, run_torchrun: Callable) -> Callable:
    """grpo(root, *overrides, fault="none", at=0) -> what is left of a run of the stage in root/rl1."""

    def run(root: Path, *overrides: str, fault: str = "none", at: int = 0):
        start = [f"root={root}", f"data.dir={policy / 'data'}", f"stage.init_from={policy / 'cold_start'}"]
        return run_torchrun(WORKER, 2, fault, at, *GRPO, *start, *overrides)

    return run
