"""metrics.jsonl and TensorBoard: one line per optimizer step, the same lines whether or not the run was interrupted."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1train.log.atomic import write_atomically

FILE_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tb"


class MetricsWriter:
    """Writes <run_dir>/metrics.jsonl and <run_dir>/tb on rank 0; on other ranks it writes nothing.

    start_step: the step of the checkpoint the run starts from, 0 for a fresh one. Lines of later steps, left by a run
    that was killed, are dropped: the steps are about to be done again.
    """

    def __init__(self, run_dir: Path, *, rank: int, start_step: int, tensorboard: bool = True):
        self._file = None
        self._board = None
        if rank != 0:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / FILE_NAME
        truncate_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            self._board = _TensorBoard(run_dir / TENSORBOARD_FOLDER, purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, float | int | str | list]) -> None:
        """Appends {"step": step, **values} and flushes. JSON has no NaN or infinity: they become null."""
        if self._file is None:
            return
        row = {"step": step, **{name: _json_value(value) for name, value in values.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            numbers = {n: float(v) for n, v in row.items() if n != "step" and isinstance(v, int | float)}
            self._board.write(step, numbers)

    def close(self) -> None:
        """Closes both sinks; more calls do nothing."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _TensorBoard:
    """Scalars as event files. TensorBoard's own writer: torch.utils.tensorboard takes 2 s longer to import."""

    def __init__(self, folder: Path, *, purge_step: int):
        # Imported here: 0.3 s, and only rank 0 needs it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))
        # Readers drop what earlier event files say about this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()


def truncate_after(path: Path, step: int) -> int:
    """Drops lines of steps beyond `step` and a last line torn by a kill; returns how many lines stay.

    Atomic: the file is the old one or the new one. A missing file counts as an empty one.
    """
    if not path.exists():
        return 0
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    write_atomically(path, "".join(kept))
    return len(kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows in order; a torn last line is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return lines[:-1] if lines and not lines[-1].endswith("\n") else lines


def _json_value(value: float | int | str | list) -> float | int | str | list | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
