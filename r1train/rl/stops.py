"""Hard stops: a gauge beyond its limit ends the run, after its state is saved."""

import dataclasses
import json
from pathlib import Path

from r1train.config.schema_rl import StopIf
from r1train.errors import R1TrainError
from r1train.log.atomic import write_atomically

STOPPED = "stopped.json"


class GaugeStop(R1TrainError):
    """A gauge is beyond its limit in rl.stop_if; the state is saved. Every rank raises it."""

    exit_code = 1


def beyond_limits(values: dict[str, float], limits: StopIf) -> list[str]:
    """One line per gauge of `values` that is beyond its limit: gauge, value, limit and key; NaN is beyond any limit.

    Gauges that are not in `values` are not judged: a rollout knows other gauges than an update.
    """
    lines = []
    for name, limit in dataclasses.asdict(limits).items():
        gauge, _, side = name.rpartition("_")
        if limit is None or gauge not in values:
            continue
        value = values[gauge]
        inside = value <= limit if side == "above" else value >= limit
        if not inside:
            lines.append(f"{gauge} = {value:.6g} is {side} {limit:.6g} (rl.stop_if.{name})")
    return lines


def lines_beyond(gauges: list[dict[str, float]], limits: StopIf) -> list[str]:
    """beyond_limits of several updates, each line once."""
    return list(dict.fromkeys(line for values in gauges for line in beyond_limits(values, limits)))


def remember_stop(run_dir: Path, gauges: list[dict[str, float]], limits: StopIf, *, step: int) -> None:
    """Leave in <run>/stopped.json what ended the run after an update; call on one rank.

    The checkpoint holds that update, and a new start would train another rollout before it looked at any gauge.
    """
    beyond = [values for values in gauges if beyond_limits(values, limits)]
    named = {name.rpartition("_")[0] for name in vars(limits)}
    kept = [{name: value for name, value in values.items() if name in named} for values in beyond]
    write_atomically(run_dir / STOPPED, json.dumps({"step": step, "gauges": kept}) + "\n")


def still_stopped(run_dir: Path, limits: StopIf) -> str | None:
    """Why the run may not go on: what ended it is still beyond its limit. Else None, and the note is gone.

    Call on one rank, and let the others agree.
    """
    path = run_dir / STOPPED
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = lines_beyond(found["gauges"], limits)
    if not lines:
        path.unlink()
        return None
    fix = f"Fix: find the cause (docs/rl.md), then raise the limit, or delete {path} to go on as it is"
    return f"{run_dir.name}: stopped at step {found['step']}: {'; '.join(lines)}. {fix}"
