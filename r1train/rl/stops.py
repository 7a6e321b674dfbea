"""Hard stops: a gauge beyond its limit ends the run, after its state is saved."""

import dataclasses

from r1train.config.schema_rl import StopIf
from r1train.errors import R1TrainError


class GaugeStop(R1TrainError):
    """A gauge went beyond its limit in rl.stop_if; the state was saved before. Every rank raises it."""

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
