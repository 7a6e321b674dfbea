"""Save and load through megatron-core's dist_checkpointing; a checkpoint counts once its marker is renamed into place.

Layout: <run>/checkpoints/step_00000120/ with megatron-core's files and _DONE (JSON: step, tokens, position) written last.
"""

import json
import os
import queue
import shutil
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from r1train.dist.init import is_rank0
from r1train.errors import CheckpointError
from r1train.train.optim import allocate_state
from r1train.train.setup import Trainer
from r1train.train.state import TrainState

MARKER = "_DONE"
# Layout-independent optimizer state: a checkpoint of one layout loads into another.
_OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


def checkpoints(run_dir: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return sorted(marker.parent for marker in (run_dir / "checkpoints").glob(f"step_*/{MARKER}"))


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest finished checkpoint. Raises CheckpointError where there is none."""
    found = checkpoints(run_dir)
    if not found:
        raise CheckpointError(f"{run_dir} holds no finished checkpoint. Fix: let that stage finish, or point init_from elsewhere")
    return found[-1]


def save_checkpoint(trainer: Trainer, extra_modules: dict[str, torch.nn.Module] | None = None) -> None:
    """Write this step's checkpoint, then drop the oldest beyond keep_checkpoints. All ranks call it together.

    extra_modules: further modules whose weights belong to the state (the reference policy of RL).
    """
    stage = trainer.cfg.stage
    run_dir = trainer.cfg.run_dir
    folder = run_dir / "checkpoints" / f"step_{trainer.state.step:08d}"
    if is_rank0():
        # A folder without its marker is what a killed run left.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    torch.distributed.barrier()
    if filesystem_async._results_queue is None:
        # The writer's default is a queue in a manager process, needed for asynchronous saves only; starting that process
        # costs seconds per rank. A synchronous save stays in this process.
        filesystem_async._results_queue = queue.Queue()
    dist_checkpointing.save(_sharded_state(trainer, extra_modules or {}, is_loading=False), str(folder))
    if is_rank0():
        state = trainer.state
        body = {"step": state.step, "tokens": state.tokens, "position": state.position}
        (folder / f"{MARKER}.tmp").write_text(json.dumps(body))
        os.replace(folder / f"{MARKER}.tmp", folder / MARKER)
        for old in checkpoints(run_dir)[: -stage.keep_checkpoints]:
            (old / MARKER).unlink()
            shutil.rmtree(old)
    torch.distributed.barrier()


def load_weights(trainer: Trainer, folder: Path) -> None:
    """Weights of a finished checkpoint, any layout, into a trainer that starts at step 0 with a new optimizer."""
    _check(folder)
    state = {"model": trainer.module.sharded_state_dict()}
    loaded = dist_checkpointing.load(state, str(folder))
    trainer.module.load_state_dict(loaded["model"])
    trainer.optimizer.reload_model_params()


def resume(trainer: Trainer, extra_modules: dict[str, torch.nn.Module] | None = None) -> bool:
    """Continue from the run's newest finished checkpoint; False where there is none."""
    found = checkpoints(trainer.cfg.run_dir)
    if not found:
        return False
    folder = found[-1]
    extra = extra_modules or {}
    if trainer.device.type == "cpu":
        allocate_state(trainer.optimizer)
    loaded = dist_checkpointing.load(_sharded_state(trainer, extra, is_loading=True), str(folder))
    trainer.module.load_state_dict(loaded["model"])
    for name, module in extra.items():
        module.load_state_dict(loaded[name])
    with torch.no_grad():
        trainer.optimizer.load_state_dict(loaded["optimizer"])
    trainer.state = TrainState(**json.loads((folder / MARKER).read_text()))
    return True


def _check(folder: Path) -> None:
    if not (folder / MARKER).is_file():
        raise CheckpointError(f"{folder} has no {MARKER} marker, so it was not written to its end. Fix: use another step")


def _sharded_state(trainer: Trainer, extra: dict[str, torch.nn.Module], *, is_loading: bool) -> dict[str, object]:
    model = trainer.module.sharded_state_dict()
    optimizer = trainer.optimizer.sharded_state_dict({"model": model}, is_loading=is_loading, metadata=_OPTIMIZER_FORMAT)
    others = {name: module.sharded_state_dict(prefix=f"{name}.") for name, module in extra.items()}
    return {"model": model, "optimizer": optimizer, **others}
