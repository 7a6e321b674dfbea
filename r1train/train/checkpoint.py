"""Save and load through megatron-core's dist_checkpointing; a checkpoint counts once its marker is renamed into place.

Layout: <run>/checkpoints/step_00000120/ with megatron-core's files, and _DONE (JSON: the TrainState) last. Before the
first update there is no optimizer state, and none is kept.
"""

import json
import logging
import queue
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

from r1train.dist.comm import gathered
from r1train.dist.init import is_rank0
from r1train.errors import CheckpointError
from r1train.log.atomic import write_atomically
from r1train.log.checkpoints import EMA_PREFIX, MARKER, checkpoint_folder, checkpoints
from r1train.model.gpt import R1Model
from r1train.model.sharded import sharded_tensors
from r1train.train.optim import allocate_state, has_updates, load_optimizer_state, optimizer_state
from r1train.train.setup import Trainer
from r1train.train.state import TrainState

# How names of the policy's weights begin; those of the optimizer and of extra modules begin otherwise.
_WEIGHTS = ("embedding.", "decoder.", "mtp.", "output_layer.")
_OPTIMIZER = "optimizer."


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest finished checkpoint. Raises CheckpointError where there is none."""
    found = checkpoints(run_dir)
    if not found:
        fix = "Fix: let that stage finish, or point init_from elsewhere"
        raise CheckpointError(f"{run_dir} holds no finished checkpoint. {fix}")
    return found[-1]


def save_checkpoint(trainer: Trainer, extra_modules: dict[str, torch.nn.Module] | None = None) -> None:
    """Write this step's checkpoint, then drop the oldest beyond keep_checkpoints. All ranks call it together.

    extra_modules: further modules whose weights belong to the state (the reference policy of RL).
    """
    stage = trainer.cfg.stage
    run_dir = trainer.cfg.run_dir
    folder = checkpoint_folder(run_dir, trainer.state.step)
    if is_rank0():
        # A folder without its marker is what a killed run left.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    torch.distributed.barrier()
    if filesystem_async._results_queue is None:
        # The writer's default is a queue in a manager process, needed for asynchronous saves only; starting that
        # process costs seconds per rank. A synchronous save stays in this process.
        filesystem_async._results_queue = queue.Queue()
        # It warns about the future of asynchronous saves.
        logging.getLogger("megatron.core.dist_checkpointing.strategies.torch").setLevel(logging.ERROR)
    trainer.gather_weights()
    if trainer.average is not None:
        trainer.average.wait()
    state = _model_state(trainer, extra_modules or {})
    if has_updates(trainer.optimizer):
        state |= optimizer_state(trainer.optimizer, state["model"])
    dist_checkpointing.save(state, str(folder))
    if is_rank0():
        write_atomically(folder / MARKER, json.dumps(asdict(trainer.state)))
        for old in checkpoints(run_dir)[: -stage.keep_checkpoints]:
            (old / MARKER).unlink()
            shutil.rmtree(old)
    torch.distributed.barrier()


def load_weights(trainer: Trainer, folder: Path) -> None:
    """Weights of a finished checkpoint, any layout, into a trainer that starts at step 0 with a new optimizer.

    Raises CheckpointError, on every rank, for a checkpoint without its marker or of another model.
    """
    _load_chunks(trainer.modules, folder, prefix="")
    trainer.optimizer.reload_model_params()
    if trainer.average is not None:
        trainer.average.start_from(trainer.modules)


def load_module(module: R1Model, folder: Path, *, use_ema: bool = False) -> None:
    """Weights and routing biases of a finished checkpoint, any layout, into a model that does not train.

    use_ema: the average of the weights instead (optim.ema_decay). Raises CheckpointError like load_weights, and for a
    checkpoint without an average.
    """
    _load_chunks([module], folder, prefix=EMA_PREFIX if use_ema else "")


def _load_chunks(modules: list[R1Model], folder: Path, *, prefix: str) -> None:
    _check_marker(folder)
    if prefix and not _has_average(folder):
        fix = "Fix: train with optim.ema_decay, or load the weights themselves (use_ema=false)"
        raise CheckpointError(f"{folder} keeps no average of the weights. {fix}")
    state = _chunk_states(modules, prefix)
    _check_tensors(state, folder, prefix=prefix)
    loaded = dist_checkpointing.load(state, str(folder))
    _restore_chunks(modules, loaded)


def resume(trainer: Trainer, extra_modules: dict[str, torch.nn.Module] | None = None) -> bool:
    """Continue from the run's newest finished checkpoint; False where there is none.

    Raises CheckpointError, on every rank, when that checkpoint is of another model.
    """
    found = checkpoints(trainer.cfg.run_dir)
    if not found:
        return False
    folder = found[-1]
    extra = extra_modules or {}
    has_average = _has_average(folder)
    state = _model_state(trainer, extra, with_average=has_average)
    _check_tensors(state, folder)
    has_optimizer = any(key.startswith(_OPTIMIZER) for key in _tensors_of(folder))
    loaded = _load_all(trainer, state, folder) if has_optimizer else dist_checkpointing.load(state, str(folder))
    _restore_chunks(trainer.modules, loaded["model"])
    if not has_optimizer:
        trainer.optimizer.reload_model_params()
    for name, module in extra.items():
        module.load_state_dict(loaded[name])
    if trainer.average is not None and has_average:
        _restore_chunks(trainer.average.chunks, loaded["average"])
    elif trainer.average is not None:
        trainer.average.start_from(trainer.modules)
    trainer.state = TrainState(**json.loads((folder / MARKER).read_text()))
    return True


def _load_all(trainer: Trainer, state: dict[str, object], folder: Path) -> dict[str, object]:
    """`state` and the optimizer's, which is put where it belongs."""
    if trainer.device.type == "cpu":
        allocate_state(trainer.optimizer)
    return load_optimizer_state(
        trainer.optimizer,
        state["model"],
        load=lambda tensors: dist_checkpointing.load({**state, **tensors}, str(folder)),
    )


def _check_marker(folder: Path) -> None:
    if not (folder / MARKER).is_file():
        raise CheckpointError(f"{folder} has no {MARKER} marker: it was not written to its end. Fix: use another step")


def _check_tensors(state: dict[str, object], folder: Path, *, prefix: str = "") -> None:
    """Compare names and global shapes of all ranks' weights with the checkpoint's. Collective.

    prefix: of the names of the weights that the checkpoint may not hold more of.
    """
    parts = gathered({t.key: tuple(t.global_shape) for t in sharded_tensors(state)})
    wanted = {key: shape for part in parts for key, shape in part.items()}
    found = _tensors_of(folder)
    problems = [
        f"{key} has shape {list(found[key])} in the checkpoint and {list(shape)} in the model"
        if key in found
        else f"{key} {list(shape)} of the model is not in the checkpoint"
        for key, shape in sorted(wanted.items())
        if found.get(key) != shape
    ]
    names = tuple(f"{prefix}{name}" for name in _WEIGHTS)
    unknown = [key for key in sorted(found) if key.startswith(names) and key not in wanted]
    problems += [f"{key} {list(found[key])} of the checkpoint is not in the model" for key in unknown]
    if problems:
        more = {1: "", 2: "; and 1 more tensor differs"}.get(
            len(problems), f"; and {len(problems) - 1} more tensors differ"
        )
        fix = "Fix: use the model config that the checkpoint was trained with, or another checkpoint"
        raise CheckpointError(f"{folder} is of another model: {problems[0]}{more}. {fix}")


def _tensors_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> global shape of what a checkpoint holds. Raises CheckpointError when it cannot be read."""
    try:
        metadata = dist_checkpointing.load_tensors_metadata(str(folder))
    except CheckpointingException as error:
        raise CheckpointError(f"{folder} cannot be read: {error}. Fix: use another step") from error
    return {key: tuple(tensor.global_shape) for key, tensor in metadata.items()}


def _has_average(folder: Path) -> bool:
    """Whether this checkpoint keeps an average of the weights. Raises CheckpointError when it cannot be read."""
    return any(key.startswith(EMA_PREFIX) for key in _tensors_of(folder))


def _chunk_states(modules: list[R1Model], prefix: str) -> dict[str, object]:
    """Sharded weights of the chunks; their names in the checkpoint are global, after this prefix."""
    states = {f"chunk{index}": module.sharded_state_dict() for index, module in enumerate(modules)}
    if prefix:
        for state in states.values():
            add_prefix_for_sharding(state, prefix)
    return states


def _restore_chunks(modules: list[R1Model], loaded: dict) -> None:
    for index, module in enumerate(modules):
        module.load_state_dict(loaded[f"chunk{index}"])


def _model_state(
    trainer: Trainer, extra: dict[str, torch.nn.Module], *, with_average: bool = True
) -> dict[str, object]:
    """Sharded weights of the policy, of its average and of the extra modules, under names with their own prefixes."""
    others = {name: module.sharded_state_dict() for name, module in extra.items()}
    for name, weights in others.items():
        add_prefix_for_sharding(weights, f"{name}.")
    state = {"model": _chunk_states(trainer.modules, ""), **others}
    if trainer.average is not None and with_average:
        state["average"] = _chunk_states(trainer.average.chunks, EMA_PREFIX)
    return state
