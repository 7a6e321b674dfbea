"""The loss of the first steps of training: the same windows in the same order, whatever the layout."""

from megatron.core import parallel_state
from tiny import Config, windows

from r1train.dist.init import Device
from r1train.train.batches import dense_micro_batches
from r1train.train.forward import LmObjective
from r1train.train.setup import build_trainer
from r1train.train.step import train_step

STEPS = 40
SETS = 10  # of windows, taken in turn: the loss falls as the model comes to know them
MICRO_BATCHES = 4


def losses(cfg: Config, device: Device) -> list[float]:
    """Of every step, as this rank knows it."""
    trainer = build_trainer(cfg, device, total_steps=STEPS)
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    found = []
    for step in range(STEPS):
        batches = dense_micro_batches(windows(2 * MICRO_BATCHES, seq_length=64, seed=step % SETS), 2)
        result = train_step(trainer, batches[dp_rank::dp_size], LmObjective())
        trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=2 * MICRO_BATCHES)
        found.append(result.logs["loss"])
    return found
