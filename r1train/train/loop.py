"""The training loop of every stage whose data do not depend on the policy: pre-training, SFT, reward models."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from r1train.log.metrics import MetricsWriter
from r1train.log.progress import ProgressLine
from r1train.train.backends import report_attention
from r1train.train.checkpoint import save_checkpoint
from r1train.train.forward import MicroBatch, Objective
from r1train.train.setup import Trainer
from r1train.train.state import TrainState
from r1train.train.step import StepResult, train_step
from r1train.train.stop import StopRequested, StopSignal


@dataclass(frozen=True)
class StepSource:
    """Data of one optimizer step.

    samples(state): how many samples the step after this state takes over all ranks. batches(position, samples): this
    rank's micro-batches of so many samples from position on.
    """

    batches: Callable[[int, int], list[MicroBatch]]
    samples: Callable[[TrainState], int]


def train_loop(trainer: Trainer, source: StepSource, objective: Objective) -> None:
    """Steps until the stage's budget is spent, from wherever the trainer's state is."""
    stage = trainer.cfg.stage
    stop, first = StopSignal(), trainer.state.step
    with StepLog(trainer) as log:
        while trainer.state.step < stage.steps:
            started = time.monotonic()
            samples = source.samples(trainer.state)
            batches = source.batches(trainer.state.position, samples)
            known = {"sequences": samples, "time/data_wait_s": time.monotonic() - started}
            result = train_step(trainer, batches, objective)
            trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=samples)
            log.write(result, seconds=time.monotonic() - started, extra=known)
            if trainer.state.step == first + 1:
                report_attention(trainer.device)
            save_if_due(trainer, stop)


def save_if_due(trainer: Trainer, stop: StopSignal, extra_modules: dict[str, torch.nn.Module] | None = None) -> None:
    """Save every save_every_steps, at the end of the stage, and when asked to stop. Raises StopRequested then."""
    stage, step = trainer.cfg.stage, trainer.state.step
    stopping = step < stage.steps and stop.agreed()
    if step % stage.save_every_steps == 0 or step == stage.steps or stopping:
        save_checkpoint(trainer, extra_modules)
    if stopping:
        raise StopRequested(f"{trainer.cfg.step}: stopped as asked, saved at step {step} of {stage.steps}")


class StepLog:
    """Writes each step to metrics.jsonl, TensorBoard and the progress line, on rank 0."""

    def __init__(self, trainer: Trainer):
        cfg, rank = trainer.cfg, torch.distributed.get_rank()
        start = trainer.state.step
        self._trainer = trainer
        self._metrics = MetricsWriter(cfg.run_dir, rank=rank, start_step=start)
        self._line = ProgressLine(cfg.step, steps=cfg.stage.steps, start_step=start, rank=rank)

    def write(self, result: StepResult, *, seconds: float, extra: dict[str, float] | None = None) -> None:
        """result: of the step that was just done; seconds: its wall-clock time; extra: further values of this step."""
        state = self._trainer.state
        values = {
            "tokens": state.tokens,
            **result.logs,
            "grad_norm": result.grad_norm,
            **result.scheduled,
            **result.gauges,
            **(extra or {}),
            "time/step_s": seconds,
            "time/tokens_per_s": result.num_tokens / seconds,
        }
        self._metrics.write(state.step, values)
        self._line.update(state.step, loss=result.logs["loss"], tokens=result.num_tokens)

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._metrics.close()
