"""One optimizer step, shared by every training stage: the objective is an argument."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

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

    gauges: the experts' load (train/balance.py), numbers and lists; empty without experts.
    """

    logs: dict[str, float]
    num_tokens: int
    grad_norm: float
    learning_rate: float
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
    learning_rate = _apply_schedules(trainer)
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
    # megatron-core adds to these trackers at every forward; we log through our own sums.
    MTPLossLoggingHelper.clean_metrics_in_tracker()
    get_moe_metrics_tracker().clear()
    if trainer.average is not None:
        trainer.gather_weights()
        trainer.average.update(trainer.modules)
    balance = step_balance(trainer.modules)
    return StepResult(logs, num_tokens, float(grad_norm), learning_rate, balance.gauges() if balance else {})


def skipped_step(trainer: Trainer) -> StepResult:
    """A step that no rank has a token for: schedules go on, weights and optimizer stay as they are."""
    return StepResult({"loss": 0.0}, 0, 0.0, _apply_schedules(trainer), {})


def _apply_schedules(trainer: Trainer) -> float:
    """Set this step's learning rate, MTP weight and bias rate; returns the learning rate."""
    lr, state = trainer.cfg.lr, trainer.state
    progress = Progress(state.tokens, state.step, trainer.total_steps)
    learning_rate = value_at(lr.learning_rate, progress)
    set_learning_rate(trainer.optimizer, learning_rate)
    trainer.model_config.mtp_loss_scaling_factor = value_at(lr.mtp_weight, progress)
    trainer.model_config.moe_router_bias_update_rate = value_at(lr.bias_rate, progress)
    return learning_rate


def reduce_logs(outputs: list[LossOutput], device: torch.device) -> tuple[dict[str, float], int]:
    """Sums over micro-batches and data-parallel ranks, divided by the global token count, known to every rank."""
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    names = of_rank(sorted(outputs[0].logs) if outputs else [], last, pp_group)
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    for output in outputs:
        sums += torch.stack([*(output.logs[name].double() for name in names), output.num_tokens.double()])
    if parallel_state.is_pipeline_last_stage():
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if pp_group.size() > 1:
        torch.distributed.broadcast(sums, src=last, group=pp_group)
    values = sums.tolist()
    count = values.pop()
    return {name: value / max(count, 1.0) for name, value in zip(names, values, strict=True)}, round(count)
