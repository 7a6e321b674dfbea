"""Objectives on the main head: log-probabilities of given tokens, and GRPO's loss on them."""

from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from r1train.config.schema import GrpoStage
from r1train.model.gpt import R1Model
from r1train.rl.loss import TokenLogprobs, grpo_token_loss
from r1train.train.forward import LossOutput, MicroBatch


@dataclass(frozen=True)
class _LogprobContext:
    """What the model's output processor needs: labels [b, s] and the sampling temperature."""

    labels: torch.Tensor
    temperature: float


def _label_logprobs(
    *, hidden_states: torch.Tensor, output_layer: torch.nn.Module, context: _LogprobContext
) -> torch.Tensor:
    """hidden [s, b, h] -> log-probability of each label [b, s], float32, of the tempered distribution."""
    logits, _ = output_layer(hidden_states)
    cross_entropy = vocab_parallel_cross_entropy(
        logits.float() / context.temperature, context.labels.transpose(0, 1).contiguous()
    )
    return -cross_entropy.transpose(0, 1)


class LogprobObjective:
    """Forward only: what the trainer says about tokens that were sampled at `temperature`."""

    def __init__(self, temperature: float):
        self._temperature = temperature

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        return model(
            batch.tokens,
            batch.positions,
            None,
            packed_seq_params=batch.packed_seq_params(),
            padding_mask=batch.padding_mask(),
            output_processor=_label_logprobs,
            output_processor_context=_LogprobContext(batch.labels, self._temperature),
        )

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        raise AssertionError("LogprobObjective is for forward_only")


class GrpoObjective(LogprobObjective):
    """Clipped ratio plus k3 KL (DeepSeekMath eq. 3 and 4), weighted per token by the aggregation rule.

    The batch's extras: advantages, old_logprobs, ref_logprobs, weights. weights sum to 1 over the step, and gradients
    are divided by the step's token count at the end, so the loss is multiplied by that count (num_tokens) here.
    """

    def __init__(self, stage: GrpoStage, temperature: float, *, num_tokens: int):
        super().__init__(temperature)
        self._stage = stage
        self._num_tokens = num_tokens

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        stage = self._stage
        token_loss = grpo_token_loss(
            TokenLogprobs(
                policy=output[0], old=batch.extras["old_logprobs"][0], reference=batch.extras["ref_logprobs"][0]
            ),
            advantages=batch.extras["advantages"][0],
            mask=batch.loss_mask[0],
            clip_low=stage.clip_low,
            clip_high=stage.clip_high,
            kl_coef=stage.kl_coef,
        )
        loss_sum = (token_loss.loss * batch.extras["weights"][0]).sum() * self._num_tokens
        logs = {
            "loss": loss_sum.detach(),
            "kl": token_loss.sums["kl"],
            "ratio": token_loss.sums["ratio"],
            "clip_share": token_loss.sums["clipped"],
        }
        return LossOutput(loss_sum, batch.loss_mask.sum().int(), logs)
