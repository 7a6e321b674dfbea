"""A tiny schedule through the command line, and one undisturbed run of it that all tests look at."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from r1train.dist.parent import child_environment

LIMIT_S = 300.0
# The R1 schedule up to rejection sampling; just enough training that some samples verify, and that some end by
# themselves and some at the budget.
OVERRIDES = [
    "experiment=tiny",
    "schedule.steps=[{id:prepare,stage:prepare,title:prepare},{id:pretrain,stage:pretrain,title:pretrain},"
    "{id:cold_start,stage:sft,title:SFT,init_from:pretrain},{id:rl1,stage:grpo,title:RL,init_from:cold_start},"
    "{id:reject,stage:reject,title:reject,init_from:rl1},{id:evaluate,stage:evaluate,title:eval,init_from:rl1}]",
    "data.worked_examples=500",
    "data.heldout_fraction=0.1",
    "per_stage.pretrain.stage.steps=40",
    "per_stage.pretrain.stage.save_every_steps=20",
    "per_stage.cold_start.stage.steps=20",
    "per_stage.cold_start.stage.save_every_steps=10",
    "per_stage.cold_start.evaluate_after=false",
    "per_stage.rl1.stage.steps=4",
    "per_stage.rl1.stage.save_every_steps=2",
    "per_stage.rl1.stage.reference_refresh_steps=2",
    "per_stage.rl1.stage.prompts_per_step=4",
    "per_stage.rl1.stage.samples_per_prompt=4",
    "per_stage.rl1.evaluate_after=false",
    "per_stage.reject.stage.num_prompts=64",
    "rollout.max_response_tokens=32",
    "eval.max_response_tokens=32",
    "eval.problems_per_task=32",
]


def command(root: Path) -> list[str]:
    return [sys.executable, "-m", "r1train", *OVERRIDES, f"root={root}"]


class Undisturbed:
    """The schedule from its start to its end; it runs beside the tests that need its first steps only."""

    def __init__(self, folder: Path):
        """folder: of root, and of what all pytest workers know about the run."""
        self.root, self.output = folder / "root", folder / "output"
        self._pid, self._second = folder / "pid", folder / "second.json"

    def start(self) -> subprocess.Popen:
        """Start it, and once it trains the same command beside it."""
        with self.output.open("w") as output:
            running = subprocess.Popen(command(self.root), stdout=output, stderr=output, env=child_environment())
        self._pid.write_text(str(running.pid))
        self.wait_for("pretrain/metrics.jsonl")
        second = subprocess.run(command(self.root), capture_output=True, text=True, timeout=LIMIT_S, check=False)
        self._second.write_text(json.dumps([second.returncode, second.stdout, second.stderr]))
        return running

    @property
    def pid(self) -> int:
        return int(self._pid.read_text())

    def second(self) -> tuple[int, str, str]:
        """What the same command beside it left: exit code, stdout, stderr."""
        code, stdout, stderr = json.loads(self._second.read_text())
        return code, stdout, stderr

    def runs(self) -> bool:
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def wait_for(self, name: str) -> None:
        """Until it has written this file."""
        self._wait(self.root / name)
        assert (self.root / name).exists(), self.output.read_text()[-3000:]

    def wait_for_its_end(self) -> None:
        self._wait(None)
        assert (self.root / "evaluate/result.json").exists(), self.output.read_text()[-3000:]

    def _wait(self, file: Path | None) -> None:
        """Until the file exists or nothing runs any more."""
        deadline = time.monotonic() + LIMIT_S
        while self.runs() and not (file and file.exists()):
            assert time.monotonic() < deadline, self.output.read_text()[-3000:]
            time.sleep(0.1)
