"""The state of an RL run saved at its end, where the end says nothing against the state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from r1train.log.checkpoints import checkpoint_folder, checkpoints
from r1train.rl.routing import ReplayNotUsed
from r1train.rollout.engine_ranks import EnginesParted
from r1train.rollout.push import PushFailed
from r1train.rollout.vllm_answers import RoutesMissing
from r1train.train.checkpoint import save_checkpoint
from r1train.train.setup import Trainer

# What is wrong with a rollout or the passes before its first update. All ranks raise them together.
OF_A_ROLLOUT = (PushFailed, EnginesParted, RoutesMissing, ReplayNotUsed)


def save_unless_there(trainer: Trainer, extra_modules: dict[str, torch.nn.Module]) -> None:
    """The state as it is, if this step has no checkpoint yet. Collective."""
    run_dir = trainer.cfg.run_dir
    if checkpoint_folder(run_dir, trainer.state.step) not in checkpoints(run_dir):
        save_checkpoint(trainer, extra_modules)


@contextmanager
def saved_at_failure(trainer: Trainer, extra_modules: dict[str, torch.nn.Module]) -> Iterator[None]:
    """Around a rollout and what precedes its first update: a failure of it ends the run with the state saved.

    Not with rl.offload_during_rollout, whose state does not come back after an error (train/offload.py): the last
    checkpoint stays the last one.
    """
    try:
        yield
    except OF_A_ROLLOUT as error:
        if trainer.cfg.rl.offload_during_rollout:
            raise
        save_unless_there(trainer, extra_modules)
        step = trainer.state.step
        raise type(error)(f"{error}. State saved at step {step}; starting the stage again continues there") from error
