"""What one rollout leaves to the next, on disk: <run>/rollouts/carried, one file per rank and checkpoint.

A checkpoint holds weights after some update; samples that older weights drew for the updates after it lie here. A file
is written before the update that leads to its step and kept as long as a run may start from there.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from r1train.dist.comm import gathered
from r1train.errors import R1TrainError
from r1train.log.atomic import write_atomically
from r1train.log.checkpoints import checkpoints

Rows = list[dict[str, Any]]


class CarriedLost(R1TrainError):
    """Samples that belong to a checkpoint cannot be used by this run. Every rank raises it."""


@dataclass(frozen=True)
class Shard:
    """Whose samples: every rank of a replica draws the same, but a pipeline stage knows its own layers' experts."""

    dp_rank: int
    dp_size: int
    pp_rank: int
    pp_size: int
    tp_rank: int = 0
    tp_size: int = 1

    @staticmethod
    def here() -> "Shard":
        return Shard(
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )

    @property
    def name(self) -> str:
        """For files of this rank alone."""
        name = f"dp_{self.dp_rank:04d}_pp_{self.pp_rank:02d}"
        return name if self.tp_size == 1 else f"{name}_tp_{self.tp_rank:02d}"


def write_carried(run_dir: Path, shard: Shard, rows: Rows, *, step: int, now: int) -> None:
    """Keep the rows for a run that goes on from `step`; drop files of steps that no run starts from any more.

    now: the updates that are done. A stop by a gauge may still save that step.
    """
    folder = _folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in [asdict(shard), *rows]]
    write_atomically(_path(run_dir, shard, step), "".join(lines))
    kept = {path.name for path in checkpoints(run_dir)}
    for path in folder.glob(f"step_*_{shard.name}.jsonl"):
        if path.name[:13] not in kept and int(path.name[5:13]) < now:
            path.unlink()


def read_carried(run_dir: Path, shard: Shard, *, step: int) -> Rows | None:
    """The rows that were kept for `step`; None where nothing was. Raises ValueError for those of another layout."""
    path = _path(run_dir, shard, step)
    if not path.is_file():
        if any(_folder(run_dir).glob(f"{_step(step)}_*.jsonl")):
            raise ValueError(f"{path} is not there, but other ranks' files are")
        return None
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    if Shard(**header) != shard:
        raise ValueError(f"{path} was written with {header['dp_size']} data-parallel ranks")
    return rows


def carried_by_all(run_dir: Path, *, step: int) -> Rows | None:
    """read_carried of this rank. Collective: raises CarriedLost on every rank where one cannot read its own."""
    problem: str | None = None
    rows: Rows | None = None
    try:
        rows = read_carried(run_dir, Shard.here(), step=step)
    except ValueError as error:
        problem = str(error)
    first = next((one for one in gathered(problem) if one is not None), None)
    if first is not None:
        fix = "Fix: go on with the layout it was written with; asynchronous rollouts do not change layout on resume"
        raise CarriedLost(f"samples for step {step} were drawn in another layout: {first}. {fix}")
    return rows


def _folder(run_dir: Path) -> Path:
    return run_dir / "rollouts" / "carried"


def _step(step: int) -> str:
    return f"step_{step:08d}"


def _path(run_dir: Path, shard: Shard, step: int) -> Path:
    return _folder(run_dir) / f"{_step(step)}_{shard.name}.jsonl"
