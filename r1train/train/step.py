"""One optimizer step, shared by every training stage: the objective is an argument."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from r1train.dist.comm import of_rank
from r1train.errors import R1TrainError
from r1train.train.balance import step_balance
from r1train.train.forward import LossOutput, MicroBatch, Objective, forward_backward
from r1train.train.optim import set_learning_rate
from r1train.train.schedules import Progress, value_at
from r1train.train.setup import Trainer


class TrainingDiverged(R1TrainError):
    """Loss or gradient norm is not finite; every rank raises it in the same step."""

    exit_code = 1


@dataclass(frozen=True)
class StepResult:
    """What one step did: logs are means per counted token over all ranks; num_tokens is that count.

    scheduled: what the schedules said for it. gauges: of the experts (train/balance.py), numbers and lists.
    """

    logs: dict[str, float]
    num_tokens: int
    grad_norm: float
    scheduled: dict[str, float]
    gauges: dict[str, float | list]


def train_step(
    trainer: Trainer,
    batches: list[MicroBatch],
    objective: Objective,
    *,
    before_update: Callable[[], None] = lambda: None,
) -> StepResult:
    """Schedules, gradients, clip, update. Every data-parallel rank passes the same number of micro-batches.

    before_update: called on every rank when all gradients are there and the weights are as they were; may raise.
    Raises TrainingDiverged before the weights change when the gradient norm is not finite.
    """
    scheduled = _apply_schedules(trainer)
    for chunk in trainer.chunks:
        chunk.zero_grad_buffer()
        chunk.train()
    trainer.optimizer.zero_grad()
    outputs = forward_backward(trainer.chunks, [batch.to(trainer.device.torch_device) for batch in batches], objective)
    logs, num_tokens = reduce_logs(outputs, trainer.device.torch_device)
    if not all(torch.isfinite(torch.tensor(value)) for value in logs.values()):
        raise TrainingDiverged(f"step {trainer.state.step + 1}: {logs} is not finite; the last checkpoint is unharmed")
    before_update()
    if trainer.average is not None:
        trainer.average.before_weights_change()
    updated, grad_norm, _ = trainer.optimizer.step()
    if not updated or not torch.isfinite(torch.tensor(grad_norm)):
        what = f"gradient norm {grad_norm}; the last checkpoint is unharmed"
        raise TrainingDiverged(f"step {trainer.state.step + 1}: {what}")
    if trainer.average is not None:
        trainer.gather_weights()
        trainer.average.update(trainer.modules)
    balance = step_balance(trainer.modules, micro_batches=len(batches))
    return StepResult(logs, num_tokens, float(grad_norm), scheduled, balance.gauges() if balance else {})


def skipped_step(trainer: Trainer) -> StepResult:
    """A step that no rank has a token for: schedules go on, weights and optimizer stay as they are."""
    return StepResult({"loss": 0.0}, 0, 0.0, _apply_schedules(trainer), {})


def _apply_schedules(trainer: Trainer) -> dict[str, float]:
    """Set this step's learning rate, MTP weight and bias rate; returns them."""
    lr, state = trainer.cfg.lr, trainer.state
    progress = Progress(state.tokens, state.step, trainer.total_steps)
    schedules = {"learning_rate": lr.learning_rate, "mtp_weight": lr.mtp_weight, "bias_rate": lr.bias_rate}
    scheduled = {name: value_at(schedule, progress) for name, schedule in schedules.items()}
    set_learning_rate(trainer.optimizer, scheduled["learning_rate"])
    trainer.model_config.mtp_loss_scaling_factor = scheduled["mtp_weight"]
    trainer.model_config.moe_router_bias_update_rate = scheduled["bias_rate"]
    return scheduled


def reduce_logs(outputs: list[LossOutput], device: torch.device) -> tuple[dict[str, float], int]:
    """Sums over micro-batches and data-parallel ranks, divided by their counts; and the global token count.

    Every rank knows both. A log is divided by the sum of its own counts, where it has some, else by the token count.
    """
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    mine = (sorted(outputs[0].logs), sorted(outputs[0].counts)) if outputs else ([], [])
    names, counted = of_rank(mine, last, pp_group)
    sums = torch.zeros(len(names) + len(counted) + 1, dtype=torch.float64, device=device)
    for output in outputs:
        parts = [output.logs[name] for name in names] + [output.counts[name] for name in counted]
        sums += torch.stack([part.double() for part in (*parts, output.num_tokens)])
    if parallel_state.is_pipeline_last_stage():
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if pp_group.size() > 1:
        torch.distributed.broadcast(sums, src=last, group=pp_group)
    *values, count = sums.tolist()
    own_counts = dict(zip(counted, values[len(names) :], strict=True))
    logged = dict(zip(names, values[: len(names)], strict=True))
    return {name: value / max(own_counts.get(name, count), 1.0) for name, value in logged.items()}, round(count)
