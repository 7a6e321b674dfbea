"""Objectives on the main head: log-probabilities of given tokens, and the RL loss on them."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state

from r1train.config.schema_rl import RlConfig
from r1train.model.gpt import R1Model
from r1train.model.replay import Routing
from r1train.rl.histogram import RatioHistogram
from r1train.rl.label_logprobs import label_logprobs
from r1train.rl.loss import SampleTokens, TokenLogprobs, token_loss
from r1train.rl.mismatch import LogprobGap
from r1train.rl.segments import segment_ids
from r1train.train.forward import LossOutput, MicroBatch


@dataclass(frozen=True)
class _LogprobContext:
    """What the model's output processor needs: labels [b, s] and the sampling temperature."""

    labels: torch.Tensor
    temperature: float


def _both(
    *, hidden_states: torch.Tensor, output_layer: torch.nn.Module, context: _LogprobContext
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [s, b, h] -> log-probability of each label [b, s] and entropy [b, s] of the tempered distribution."""
    logits, _ = output_layer(hidden_states)
    logprobs, entropies = label_logprobs(
        logits,
        context.labels.transpose(0, 1),
        temperature=context.temperature,
        group=parallel_state.get_tensor_model_parallel_group(),
    )
    return logprobs.transpose(0, 1), entropies.transpose(0, 1)


def _logprobs(**head: Any) -> torch.Tensor:
    """[b, s], float32."""
    return _both(**head)[0]


def _logprobs_and_entropies(**head: Any) -> torch.Tensor:
    """[2, b, s], float32; entropies have no gradient."""
    return torch.stack(_both(**head))


def _routes(batch: MicroBatch) -> tuple[torch.Tensor | None, torch.Tensor]:
    return batch.extras.get("routes"), batch.tokens


class LogprobObjective:
    """Forward only: what the trainer says about tokens that were sampled at `temperature`.

    routing: what this pass does with the batches' extra "routes" and the routers' own choices; None: nothing.
    """

    _output_processor = staticmethod(_logprobs)

    def __init__(self, temperature: float, *, routing: Routing | None = None):
        self._temperature = temperature
        self._routing = routing

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        routes = nullcontext() if self._routing is None else self._routing.forward(*_routes(batch))
        with routes:
            return model(
                batch.tokens,
                batch.positions,
                None,
                packed_seq_params=batch.packed_seq_params(),
                padding_mask=batch.padding_mask(),
                output_processor=self._output_processor,
                output_processor_context=_LogprobContext(batch.labels, self._temperature),
            )

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        raise AssertionError("LogprobObjective is for forward_only")


class GrpoObjective(LogprobObjective):
    """The algorithm's loss per token (rl/loss.py), weighted by the aggregation rule. One object serves one step.

    The batch's extras: advantages, engine_logprobs, weights, old_logprobs unless they are this forward's own
    (rl.old_logprobs=update), and ref_logprobs where a reference is kept.
    weights sum to 1 over the step, and gradients are divided by the step's token count at the end, so the loss is
    multiplied by that count (num_tokens) here.
    """

    _output_processor = staticmethod(_logprobs_and_entropies)

    def __init__(self, cfg: RlConfig, temperature: float, *, num_tokens: int, routing: Routing | None = None):
        super().__init__(temperature, routing=routing)
        self._cfg = cfg
        self._num_tokens = num_tokens
        self._ratios = RatioHistogram(torch.cuda.current_device())
        # Measured here where no pass before the step has done so.
        self._gap = LogprobGap(torch.cuda.current_device()) if cfg.old_logprobs == "update" else None

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        assert batch.cu_seqlens is not None, "RL trains on packed rows"
        logprobs, entropy = output[0, 0], output[1, 0].detach()
        mask, extras = batch.loss_mask[0], {name: extra[0] for name, extra in batch.extras.items()}
        result = token_loss(
            TokenLogprobs(
                policy=logprobs,
                old=self._old(logprobs.detach(), extras, mask),
                engine=extras["engine_logprobs"],
                reference=extras.get("ref_logprobs"),
            ),
            SampleTokens(advantages=extras["advantages"], mask=mask, segments=segment_ids(batch.cu_seqlens)),
            self._cfg,
        )
        self._ratios.add(result.ratio.log(), mask.bool())
        loss_sum = (result.loss * extras["weights"]).sum() * self._num_tokens
        logs = {
            "loss": loss_sum.detach(),
            "kl": result.sums["kl"],
            "ratio": result.sums["ratio"],
            "clip_share": result.sums["clipped"],
            "clip_low_share": result.sums["clipped_low"],
            "clip_high_share": result.sums["clipped_high"],
            "correction_mean": result.sums["correction"],
            "left_out_share": result.sums["left_out"],
            "entropy": torch.where(mask.bool(), entropy, 0.0).sum(),
        }
        return LossOutput(loss_sum, batch.loss_mask.sum().int(), logs)

    def _old(self, own: torch.Tensor, extras: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the policy before this step."""
        if self._gap is None:
            return extras["old_logprobs"]
        self._gap.add(extras["engine_logprobs"], own, mask)
        return own

    def logprob_gap(self) -> dict[str, float]:
        """rl/mismatch.py, where no pass before the step has measured it; else empty. Collective, once per object."""
        if self._gap is None:
            return {}
        return self._gap.reduce(parallel_state.get_data_parallel_group(with_context_parallel=True))

    def ratio_quantiles(self) -> dict[str, float]:
        """Of the ratio that the clip looks at, over all response tokens of the step. Collective, once per object."""
        return self._ratios.reduce().quantiles("ratio")
