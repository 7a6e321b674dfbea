"""Run a schedule: each stage in its own processes, in order; finished ones are skipped, the first failure stops it.

On one CPU machine the ranks are forks of a process that has everything imported (dist/warm.py), elsewhere a torchrun's.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from r1train.config.schema import RunConfig
from r1train.config.steps import PlannedStep, check_schedule, plan_steps
from r1train.dist.gpus import count_gpus
from r1train.dist.parent import child_environment
from r1train.dist.warm import RunningRanks, WarmRanks
from r1train.errors import EnvironmentProblem, StageFailed
from r1train.log.lock import hold
from r1train.log.memory import MemorySampler, save_peak
from r1train.log.result import read_result
from r1train.report.table import print_table
from r1train.stages.stale import refuse, set_aside, stale_steps

# Stages that are one process by nature: they prepare files and join no process group.
SINGLE_PROCESS = ("prepare",)
PRELOAD = "r1train.stages.preload"
LAST_LINES = 30
ERROR = "error: "  # how __main__ begins the message of a mistake
LOCK = "schedule.lock"
# The lock of an orchestrator that was killed is free at once; one that is busy belongs to a live one.
WAIT_S = 2.0


def run_schedule(overrides: list[str], *, stale: str = "refuse") -> None:
    """Every step of the schedule in turn, then the stage table. Running it again continues where it stopped.

    stale: what happens to steps that do not fit their config or inputs any more: refuse (StaleRun says why), rerun
    (their folders are moved aside), keep (they count as they are).
    Raises ConfigError, before anything is started, with the problems of all steps, and EnvironmentProblem where this
    machine cannot run them; RunInUse when the schedule is running already; StageFailed with what the stage said.
    """
    configs = check_schedule(overrides)
    planned = plan_steps(overrides)
    root = Path(configs[0].root)
    moves = stale_to_move(configs, stale)
    check_machine([cfg for cfg in configs if cfg.step in moves or read_result(cfg.run_dir) is None])
    for place in move_stale(configs, moves):
        print(f"moved aside: {place}", flush=True)
    if any(read_result(cfg.run_dir) is None for cfg in configs):
        with hold(root / LOCK, wait_s=WAIT_S):
            run_steps(root, planned, configs, keep_stale=stale == "keep")
    print_table(root, configs[0].schedule.steps)


def stale_to_move(configs: list[RunConfig], stale: str) -> dict[str, list[str]]:
    """Steps whose folders have to be moved aside, and why; `stale` as for run_schedule."""
    found = stale_steps(configs) if stale != "keep" else {}
    if stale == "refuse":
        refuse(found)
    return found


def move_stale(configs: list[RunConfig], stale: dict[str, list[str]]) -> list[Path]:
    """Moves the folders of these steps aside, and returns where they are now.

    Raises RunInUse, before anything is moved, where the schedule or one of these steps is running (a Slurm job).
    """
    if not stale:
        return []
    of_steps = [cfg.run_dir / "locks" / "rank_0.lock" for cfg in configs if cfg.step in stale]
    with ExitStack() as held:
        for lock in (Path(configs[0].root) / LOCK, *(path for path in of_steps if path.exists())):
            held.enter_context(hold(lock, wait_s=WAIT_S))
        return set_aside(configs, stale)


def check_machine(configs: list[RunConfig]) -> None:
    """Raises EnvironmentProblem where these steps, started from here, would find too few machines or GPUs."""
    nodes = max((cfg.cluster.nodes for cfg in configs), default=1)
    if nodes > 1:
        raise EnvironmentProblem(
            f"cluster.nodes is {nodes}, and a schedule that is started by hand runs on this machine alone. "
            f"Fix: slurm/schedule.sh --nodes={nodes} with the same words (docs/slurm.md)"
        )
    on_gpus = [cfg for cfg in configs if cfg.cluster.device == "cuda" and cfg.stage.name not in SINGLE_PROCESS]
    needed = max((cfg.parallel.world_size for cfg in on_gpus), default=0)
    if needed and (found := count_gpus()) < needed:
        raise EnvironmentProblem(
            f"cluster.device is cuda and needs {needed} GPU(s), one for each process, but {found} can be seen here. "
            "Fix: start it where there are so many, or another experiment; data alone need none: stage=prepare"
        )


def run_steps(root: Path, planned: list[PlannedStep], configs: list[RunConfig], *, keep_stale: bool) -> None:
    """Every step that has no result yet, in order, and the peak memory of all their processes."""
    own = ["stale=keep"] if keep_stale else []
    sampler = MemorySampler()
    sampler.start()
    forked = [cfg for cfg in configs if runs_warm(cfg) and read_result(cfg.run_dir) is None]
    warm = WarmRanks(PRELOAD, stage_environment(forked[0])) if forked else None
    try:
        for step, cfg in zip(planned, configs, strict=True):
            if read_result(cfg.run_dir) is not None:
                print(f"{step.step.id}: done", flush=True)
                continue
            print(f"{step.step.id}: {step.step.title}", flush=True)
            run_step(cfg, [*own, *step.overrides], warm if runs_warm(cfg) else None)
    finally:
        save_peak(root, sampler.stop())


def runs_warm(cfg: RunConfig) -> bool:
    """Whether a step's ranks are forks: all on this machine, without CUDA, whose contexts do not survive a fork."""
    return cfg.cluster.device == "cpu" and cfg.cluster.nodes == 1 and cfg.stage.name not in SINGLE_PROCESS


def run_step(cfg: RunConfig, overrides: list[str], warm: WarmRanks | None = None) -> None:
    """One stage to its end, its output shown and kept in <run>/logs/attempt_N.log. Raises StageFailed."""
    folder = cfg.run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"attempt_{len(list(folder.glob('attempt_*.log'))):03d}.log"
    started = time.monotonic()
    running: RunningRanks | ColdStage
    if warm is None:
        running = ColdStage(stage_command(cfg, overrides), stage_environment(cfg))
    else:
        running = warm.start("r1train", overrides, world_size=cfg.parallel.world_size)
    said = LastWords()
    try:
        with log.open("w", encoding="utf-8") as file:
            for line in running.lines():
                file.write(line)
                file.flush()
                said.hear(line)
                print(f"  {line}", end="", flush=True)
        returncode = running.wait()
    except BaseException:
        # Interrupted: the stage must not go on without its orchestrator.
        running.stop()
        raise
    if returncode != 0 or read_result(cfg.run_dir) is None:
        raise StageFailed(
            f"{cfg.step} ended with exit code {returncode} after {time.monotonic() - started:.0f} s. {said}"
            f"(whole output: {log}). Run the same command again to continue from its last checkpoint",
            exit_code=2 if returncode == 2 else 1,
        )


class LastWords:
    """What a stage that failed said: its last error, where one of its processes printed one, else its last lines."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._error: list[str] = []
        self._within = False

    def hear(self, line: str) -> None:
        """The next line of its output. An error goes on in the indented lines below it, and in that of its fix."""
        self._last.append(line)
        if line.startswith(ERROR):
            self._error = []
        self._within = line.startswith((ERROR, "  ", "Fix: ") if self._within else ERROR)
        if self._within and len(self._error) < LAST_LINES:
            self._error.append(line.removeprefix(ERROR))

    def __str__(self) -> str:
        if self._error:
            return f"It says:\n{''.join(self._error)}"
        return f"Its last lines:\n{''.join(self._last)}"


class ColdStage:
    """A stage as a command of its own, in its own session."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def lines(self) -> Iterator[str]:
        """What it prints, until it ends."""
        assert self._process.stdout is not None
        yield from self._process.stdout

    def wait(self) -> int:
        return self._process.wait()

    def stop(self) -> None:
        """Ask the whole session to end, and wait for its first process."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def stage_command(cfg: RunConfig, overrides: list[str]) -> list[str]:
    """torchrun for stages on processes, plain python for single-process ones."""
    module = ["-m", "r1train", *overrides]
    if cfg.stage.name in SINGLE_PROCESS:
        return [sys.executable, *module]
    launcher = ["-m", "r1train.dist.torchrun", "--standalone", "--nproc-per-node", str(cfg.parallel.world_size)]
    return [sys.executable, *launcher, *module]


def stage_environment(cfg: RunConfig) -> dict[str, str]:
    """Threads per process, and quiet third-party warnings: the stage's own lines are what a user reads.

    The stage ends with this process, however that ends (dist/parent.py).
    """
    threads = str(cfg.cluster.threads_per_process)
    quiet = {"OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    return {**child_environment(), **quiet}
