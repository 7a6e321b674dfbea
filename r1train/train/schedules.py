"""Values that change while training, as pure functions of progress (V3 report section 4.2)."""

import math
from dataclasses import dataclass

from r1train.config.schema_train import LrConfig, Piecewise


@dataclass(frozen=True)
class Progress:
    """How far a stage is: consumed tokens, finished optimizer steps, and the steps it will take in all."""

    tokens: int
    step: int
    total_steps: int

    def in_unit(self, unit: str) -> float:
        return {"tokens": self.tokens, "steps": self.step, "fraction": self.step / self.total_steps}[unit]


def batch_size_at(lr: LrConfig, full: int, progress: Progress) -> int:
    """Sequences of the next step, over all ranks: the ramp's value, to the nearest lr.batch_multiple; no ramp: full.

    V3 goes from 3072 to 15360 over the first 469B tokens; the shape of its ramp is not published.
    """
    if lr.batch_size is None:
        return full
    multiple = lr.batch_multiple
    return max(multiple, math.floor(value_at(lr.batch_size, progress) / multiple + 0.5) * multiple)


def value_at(schedule: Piecewise, progress: Progress) -> float:
    """The schedule's value: linear or cosine from segment to segment; constant segments jump at their beginning.

    A boundary belongs to the segment that ends there: at exactly `until` the value is that segment's `to`.
    """
    position = progress.in_unit(schedule.unit)
    start_position, start = 0.0, schedule.start
    if position <= 0.0 and not (schedule.segments and schedule.segments[0].shape == "constant"):
        return schedule.start
    for segment in schedule.segments:
        if position <= segment.until:
            if segment.shape == "constant":
                return segment.to
            share = (position - start_position) / (segment.until - start_position)
            if segment.shape == "cosine":
                share = (1.0 - math.cos(math.pi * share)) / 2.0
            return start + (segment.to - start) * share
        start_position, start = segment.until, segment.to
    return start
