"""The command line: `python -m r1train [mode=run|check|steps|plan|doctor|report] [experiment=...] [key=value ...]`."""

import json
import os
import sys
import time
from pathlib import Path

from r1train.dist.parent import end_with_parent
from r1train.errors import ConfigError, Problem, R1TrainError, file_problem

USAGE = """usage: python -m r1train [mode=MODE] [experiment=NAME] [schedule=NAME | stage=NAME] [key=value] ...

modes
  run      (default) without stage=: every stage of the schedule, each as its own torchrun, skipping what is done;
           with stage=: that one stage in this process (torchrun or srun starts one process per rank)
  check    report every problem of the config (of every step of the schedule, or of the given stage); writes nothing
  steps    the schedule as lines of tab-separated words: step id, stage, then that stage's overrides (for scripts)
  plan     parameters and bytes per rank; plan=FILE also writes them as JSON
  doctor   what is installed, and what each missing part switches off
  report   the stage table, the lineage and the comparison of evaluations of the runs in root, and report.html there

stale=refuse|rerun|keep   what run and steps do about stages whose config or inputs have changed; one stage alone is
           refused or kept (docs/lineage.md)

examples
  python -m r1train experiment=tiny
  torchrun --nproc-per-node 2 -m r1train experiment=tiny stage=grpo stage.init_from=runs/tiny/cold_start
  python -m r1train mode=check experiment=tiny per_stage.grpo.stage.steps=5
  python -m r1train mode=plan experiment=v3_pretrain_h800_2048

Groups and their options are the folders and files of conf/. A key of one stage only: per_stage.STAGE_OR_STEP.key=value.
"""
MODES = ("run", "check", "steps", "plan", "doctor", "report")
STALE = ("refuse", "rerun", "keep")
SPEAK_S = 2.0  # longer than ranks of one machine are apart when they meet the same mistake


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code. A user's mistake ends with its message, without a traceback."""
    end_with_parent()
    arguments = sys.argv[1:] if argv is None else argv
    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    if not arguments:
        print(USAGE, file=sys.stderr)
        return ConfigError.exit_code
    rank = os.environ.get("RANK", "0")
    try:
        _dispatch(arguments)
    except R1TrainError as error:
        # Every rank meets the same mistake; one message is enough.
        if rank == "0":
            print(f"error: {error}" if error.exit_code else error, file=sys.stderr, flush=True)
        elif error.exit_code:
            # The launcher ends all ranks when one has failed: the one that speaks comes first.
            time.sleep(SPEAK_S)
        return error.exit_code
    except OSError as error:
        # Disks and permissions differ between nodes, so each rank speaks for itself.
        if (problem := file_problem(error)) is None:
            raise
        print(f"error: {problem}" if rank == "0" else f"error: rank {rank}: {problem}", file=sys.stderr, flush=True)
        return R1TrainError.exit_code
    return 0


def _dispatch(arguments: list[str]) -> None:
    bare = [Problem(word, None, "not key=value", f"did you mean mode={word}?") for word in arguments if word in MODES]
    if bare:
        raise ConfigError(bare)
    own, overrides = _own_options(arguments)
    mode, stale = own.get("mode", "run"), own.get("stale", "refuse")
    if stale not in STALE:
        raise ConfigError([Problem("stale", stale, "no such choice", f"one of {', '.join(STALE)}")])
    if mode not in MODES:
        raise ConfigError([Problem("mode", mode, "no such mode", f"one of {', '.join(MODES)}")])
    if mode == "run" and _has_stage(overrides):
        _run_stage(overrides, stale)
    elif mode == "run":
        _run_schedule(overrides, stale)
    elif mode == "check":
        _check(overrides)
    elif mode == "steps":
        _steps(overrides, stale)
    elif mode == "plan":
        _plan(overrides, own.get("plan"))
    elif mode == "doctor":
        _doctor()
    else:
        _report(overrides)


def _own_options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options of the command itself (mode, plan, stale), and the config overrides."""
    own, overrides = {}, []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and key in ("mode", "plan", "stale"):
            own[key] = value
        else:
            overrides.append(argument)
    return own, overrides


def _has_stage(overrides: list[str]) -> bool:
    return any(override.startswith("stage=") for override in overrides)


# Imports within the branches below: each mode loads only what it needs. mode=check takes half a second without torch,
# megatron-core alone takes four.


def _run_stage(overrides: list[str], stale: str) -> None:
    from r1train.config.load import load_config  # noqa: PLC0415

    if stale == "rerun":
        fix = "move its run folder aside yourself, or leave stage= out: the schedule moves it and runs what follows"
        raise ConfigError([Problem("stale", stale, "a stage alone does not move its own run folder", fix)])
    # A mistake in the config shows before the seconds that torch takes.
    cfg = load_config(overrides)
    from r1train.stages.run import run_stage  # noqa: PLC0415

    run_stage(cfg, keep_stale=stale == "keep")


def _run_schedule(overrides: list[str], stale: str) -> None:
    from r1train.schedule import run_schedule  # noqa: PLC0415

    run_schedule(overrides, stale=stale)


def _check(overrides: list[str]) -> None:
    from r1train.config.load import load_config  # noqa: PLC0415
    from r1train.config.steps import check_schedule  # noqa: PLC0415

    if _has_stage(overrides):
        cfg = load_config(overrides)
        print(f"ok  {cfg.step} ({cfg.stage.name})")
        return
    for cfg in check_schedule(overrides):
        print(f"ok  {cfg.step} ({cfg.stage.name})")


def _steps(overrides: list[str], stale: str) -> None:
    from r1train.config.steps import check_schedule, plan_steps  # noqa: PLC0415
    from r1train.schedule import move_stale, stale_to_move  # noqa: PLC0415

    configs = check_schedule(overrides)
    for place in move_stale(configs, stale_to_move(configs, stale)):
        print(f"moved aside: {place}", file=sys.stderr)
    own = ["stale=keep"] if stale == "keep" else []
    for planned in plan_steps(overrides):
        print(planned.step.id, planned.step.stage, *planned.overrides, *own, sep="\t")


def _plan(overrides: list[str], json_path: str | None) -> None:
    from rich.console import Console  # noqa: PLC0415

    from r1train.config.load import load_config  # noqa: PLC0415
    from r1train.plan.table import plan_record, print_plan  # noqa: PLC0415

    record = plan_record(load_config(overrides, check_files=False))
    print_plan(record, Console(width=max(100, Console().width)))
    if json_path is not None:
        temporary = Path(f"{json_path}.{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(temporary, json_path)


def _doctor() -> None:
    from r1train.report.doctor import print_doctor  # noqa: PLC0415

    print_doctor()


def _report(overrides: list[str]) -> None:
    from r1train.config.load import load_config  # noqa: PLC0415
    from r1train.config.steps import plan_steps  # noqa: PLC0415
    from r1train.report.report import print_report  # noqa: PLC0415

    # What the files lack shows in the lineage.
    print_report([load_config(step.overrides, check_files=False) for step in plan_steps(overrides)])


if __name__ == "__main__":
    sys.exit(main())
