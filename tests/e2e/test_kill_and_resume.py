"""SIGKILL of any process at any moment leaves no orphan, and the same command again ends with the same table.

One schedule runs undisturbed (conftest.py); the other is killed at every moment of KILLS, started again each time, and
compared.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tiny_schedule import LIMIT_S, OVERRIDES, Undisturbed, command

from r1train.config.steps import plan_steps
from r1train.log.compare import first_difference
from r1train.log.metrics import read_metrics
from r1train.report.table import COLUMNS, stage_rows

pytestmark = pytest.mark.e2e

STEPS = {"pretrain": 40, "cold_start": 20, "rl1": 4}
MARK = "R1TRAIN_TEST_ROOT"


def orchestrator(running: psutil.Popen) -> int:
    return running.pid


def server(running: psutil.Popen) -> int:
    """The process that every rank is forked from: the only child with children (dist/warm.py)."""
    (found,) = (child for child in running.children() if child.children())
    return found.pid


def last_rank(running: psutil.Popen) -> int:
    return psutil.Process(server(running)).children()[-1].pid


def lines(step: str, count: int) -> Callable[[Path], bool]:
    """The step has logged this many optimizer steps."""
    return lambda root: (file := root / step / "metrics.jsonl").exists() and file.read_bytes().count(b"\n") >= count


def exists(name: str) -> Callable[[Path], bool]:
    return lambda root: (root / name).exists()


def exists_in(root: Path, name: str) -> Callable[[], bool]:
    return lambda: (root / name).exists()


def saving(root: Path) -> bool:
    """A checkpoint of the cold start is being written: its folder is there, its marker is not."""
    folders = list((root / "cold_start" / "checkpoints").glob("step_*"))
    return bool(folders) and not (folders[-1] / "_DONE").exists()


@dataclass(frozen=True)
class Kill:
    """Whom to kill, and when; step: the one that is unfinished then."""

    name: str
    victim: Callable[[psutil.Popen], int]
    when: Callable[[Path], bool]
    step: str


KILLS = (
    Kill("prepare", orchestrator, exists("data.tmp/tokenizer"), "prepare"),
    Kill("training", orchestrator, lines("pretrain", 25), "pretrain"),
    Kill("saving", server, saving, "cold_start"),
    Kill("worker", last_rank, lines("rl1", 3), "rl1"),
    Kill("output without result", orchestrator, exists("reject/sft.jsonl"), "evaluate"),
    Kill("between steps", orchestrator, exists("reject/result.json"), "evaluate"),
)


def start(root: Path) -> psutil.Popen:
    """The schedule's command; MARK is inherited by every process below it, graders too."""
    return psutil.Popen(
        command(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, MARK: str(root)},
    )


def living(root: Path) -> list[int]:
    """Processes of this root's schedule that have not ended."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        if (process.info["environ"] or {}).get(MARK) == str(root) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def wait_until(condition: Callable[[], bool], running: psutil.Popen, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert running.poll() is None, (what, running.stdout.read().decode()[-3000:])
        assert time.monotonic() < deadline, what
        time.sleep(0.003)


def kill(root: Path, moment: Kill) -> None:
    """Start the schedule, kill at this moment, and see every process of it end."""
    running = start(root)
    if moment.victim is not orchestrator:
        wait_until(exists_in(root, f"{moment.step}/logs/rank_1.log"), running, moment.name)
    victim = moment.victim(running)
    wait_until(lambda: moment.when(root), running, moment.name)
    os.kill(victim, signal.SIGKILL)
    output = running.communicate(timeout=60)[0].decode()
    deadline = time.monotonic() + 60
    while living(root):
        assert time.monotonic() < deadline, (moment.name, living(root))
        time.sleep(0.1)
    assert not (root / moment.step / "result.json").exists(), moment.name
    if moment.victim is not orchestrator:
        assert running.returncode == 1
        assert "Run the same command again to continue" in output, output[-3000:]


def finish(root: Path) -> str:
    done = subprocess.run(command(root), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole(schedule: Undisturbed) -> Path:
    """Root of the undisturbed schedule, when it has ended."""
    schedule.wait_for_its_end()
    return schedule.root


@pytest.fixture(scope="module")
def broken(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("broken")
    for moment in KILLS:
        kill(root, moment)
    finish(root)
    return root


def rows(root: Path) -> list[tuple[str, ...]]:
    """The stage table without its seconds."""
    steps = [planned.step for planned in plan_steps([*OVERRIDES, f"root={root}"])]
    column = COLUMNS.index("seconds")
    return [row[:column] + row[column + 1 :] for row in stage_rows(root, steps)]


def test_the_same_command_beside_a_running_one_is_refused(schedule: Undisturbed):
    code, stdout, stderr = schedule.second()
    assert (code, stdout) == (2, "")
    assert f"error: {schedule.root}/schedule.lock is held by process {schedule.pid} on " in stderr


def test_the_table_is_the_same(whole: Path, broken: Path):
    assert [row[0] for row in rows(whole)] == ["prepare", "pretrain", "cold_start", "rl1", "reject", "evaluate"]
    assert "-" not in rows(whole)[1][1:5], "steps, tokens, loss and held-out perplexity of pre-training"
    assert "-" not in rows(whole)[5][5:], "accuracy, format rate and length of the evaluation"
    assert rows(broken) == rows(whole)


@pytest.mark.parametrize("step", STEPS)
def test_loss_lines_are_bit_identical(whole: Path, broken: Path, step: str):
    files = [root / step / "metrics.jsonl" for root in (whole, broken)]
    written = [json.loads(line)["step"] for line in files[1].read_text().splitlines()]
    assert written == list(range(1, STEPS[step] + 1))
    assert first_difference(*map(read_metrics, files), rtol=None) is None


def test_files_are_the_same(whole: Path, broken: Path):
    """Data, samples and evaluations; nothing half-written is left."""
    names = ("data/corpus/*", "data/**/*.json*", "rl1/rollouts/*", "reject/*.json*", "*/eval/*")
    found = [{f.relative_to(root) for name in names for f in root.glob(name)} for root in (whole, broken)]
    assert found[0] == found[1] and len(found[0]) >= 18
    # These say how long it took, and from which state of the source.
    for name in found[0] - {Path("reject/result.json"), Path("reject/versions.json"), Path("reject/manifest.json")}:
        one, other = ((root / name).read_text("latin-1").replace(str(root), "ROOT") for root in (whole, broken))
        assert one == other, name
    assert [f for f in broken.rglob("*") if f.name.endswith(".tmp")] == []


def test_running_it_again_prints_the_table_and_changes_nothing(broken: Path):
    before = {f: f.stat().st_mtime_ns for f in broken.rglob("*")}
    assert "pass@1" in finish(broken)
    assert {f: f.stat().st_mtime_ns for f in broken.rglob("*")} == before
