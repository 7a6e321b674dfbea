"""The progress line of a training stage: a rich line on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_INTERVAL_S = 5.0


class ProgressLine:
    """Shows stage, step/steps, loss, tokens/s and ETA on rank 0; nothing on other ranks.

    start_step: steps done by earlier attempts; rate and ETA are of this attempt.
    """

    def __init__(
        self,
        stage: str,
        *,
        steps: int,
        start_step: int,
        rank: int,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stage, self.steps, self.start_step = stage, steps, start_step
        self._clock = clock
        self._start = self._printed = clock()
        self._tokens = 0
        self._stream = stream if rank == 0 else None
        self._bar: Progress | None = None
        if rank == 0 and stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
            self._bar = Progress(*columns, console=Console(file=stream))
            self._task = self._bar.add_task(stage, total=steps, completed=start_step, line="")
            self._bar.start()

    def update(self, step: int, *, loss: float, tokens: int) -> None:
        """step: optimizer steps done so far; tokens: consumed by this step, over all ranks."""
        self._tokens += tokens
        if self._stream is None:
            return
        line = self._line(step, loss)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=line)
        elif step == self.steps or self._clock() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = self._clock()
            print(f"{self.stage} {line}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last state of the line on the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, step: int, loss: float) -> str:
        elapsed = max(self._clock() - self._start, 1e-9)
        left = (self.steps - step) * elapsed / max(step - self.start_step, 1)
        rate = self._tokens / elapsed
        return f"step {step}/{self.steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  ETA {_duration(left)}"


def _duration(seconds: float) -> str:
    """62 -> 1:02, 3723 -> 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
