"""Finished rollouts on disk, for people: <run>/rollouts/step_<updates before it>_dp_<rank>.jsonl; no run reads them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.rl.dynamic_sampling import ScoredGroup
from r1train.rl.gather import decides
from r1train.rollout.types import append_rows, group_to_row, without_routes

_NAME = re.compile(r"step_(\d{8})_dp_\d{4}\.jsonl")


def store_rollout(cfg: RunConfig, rollout: Sequence[ScoredGroup], *, step: int) -> None:
    """This replica's samples and scores, one file per rollout; a repeated one replaces its file, old ones go.

    Without the experts of tokens: they would be most of it, and what needs them (journal, carried) keeps its own.
    """
    if not decides():
        return
    rank = parallel_state.get_data_parallel_rank()
    folder = cfg.run_dir / "rollouts"
    path = folder / f"step_{step:08d}_dp_{rank:04d}.jsonl"
    partial = path.with_suffix(".tmp")
    partial.unlink(missing_ok=True)
    rows = [
        {**group_to_row(without_routes(one.group)), "scores": [score.to_row() for score in one.scores]}
        for one in rollout
    ]
    append_rows(partial, rows)
    os.replace(partial, path)
    if rank == 0 and cfg.rollout.keep_stored is not None:
        drop_old(folder, keep=cfg.rollout.keep_stored, step=step)


def drop_old(folder: Path, *, keep: int, step: int) -> None:
    """Remove the files of all but the last `keep` rollouts up to that of `step`, of every rank and layout.

    Files of later steps are those of an attempt that was killed: they are replaced as the run comes to them.
    """
    files = {path: int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    kept = sorted({of for of in files.values() if of <= step})[-keep:]
    for path, of in files.items():
        if of < kept[0]:
            path.unlink(missing_ok=True)
