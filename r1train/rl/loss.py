"""The RL loss per token: corrected policy loss plus KL, assembled from the rules that the config names.

Shapes: T packed tokens of one micro-batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from r1train.config.schema_rl import RlConfig
from r1train.rl.correction import correction, off_policy_mask
from r1train.rl.kl import KL_ESTIMATORS, bounded_log_ratio
from r1train.rl.policy_loss import POLICY_LOSSES, PolicyTokens


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities of the same tokens, each [T]: policy (with gradient), trainer at rollout, engine, reference.

    reference None: no reference model is kept (kl_coef 0).
    """

    policy: Tensor
    old: Tensor
    engine: Tensor
    reference: Tensor | None


@dataclass(frozen=True, kw_only=True)
class SampleTokens:
    """advantages: float [T], the sample's advantage at each of its tokens; mask: [T], 1 on response tokens.

    segments: int64 [T], the sequence of each token.
    """

    advantages: Tensor
    mask: Tensor
    segments: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """loss: [T], 0 where the mask is 0, carries the gradient. ratio: [T], compared with the clip bounds, detached.

    sums: detached scalars to add over micro-batches and ranks, so that e.g. the clip share is clipped / tokens.
    """

    loss: Tensor
    ratio: Tensor
    sums: dict[str, Tensor]


def token_loss(logprobs: TokenLogprobs, tokens: SampleTokens, cfg: RlConfig) -> TokenLoss:
    """correction * policy loss + kl_coef * KL estimate per token; aggregate.py makes one number of them.

    The corrections weigh the policy loss only (arXiv 2512.02556: the KL of a masked sequence stays). Raises ValueError
    for kl_coef without a reference.
    """
    if cfg.kl_coef != 0.0 and logprobs.reference is None:
        raise ValueError(f"kl_coef = {cfg.kl_coef} needs reference logprobs")
    keep, segments = tokens.mask.bool(), tokens.segments
    log_ratio = bounded_log_ratio(logprobs.policy, logprobs.old, keep)
    policy = POLICY_LOSSES[cfg.policy_loss](
        PolicyTokens(
            logprobs=torch.where(keep, logprobs.policy, 0.0),
            log_ratio=log_ratio,
            advantages=tokens.advantages,
            keep=keep,
            segments=segments,
            low=1.0 - cfg.clip_low,
            high=1.0 + cfg.clip_high,
        )
    )
    weight = correction(bounded_log_ratio(logprobs.old, logprobs.engine, keep), keep, segments, cfg.correction)
    if cfg.correction.off_policy_delta is not None:
        drift = bounded_log_ratio(logprobs.engine, logprobs.policy.detach(), keep)
        weight = weight * off_policy_mask(drift, tokens.advantages, keep, segments, cfg.correction.off_policy_delta)
    loss = policy.loss * weight
    kl = torch.zeros_like(loss)
    if logprobs.reference is not None:
        log_x = bounded_log_ratio(logprobs.reference, logprobs.policy, keep)
        kl = KL_ESTIMATORS[cfg.kl_estimator](log_x, log_ratio)
        loss = loss + cfg.kl_coef * kl
    sums = {
        "tokens": keep,
        "ratio": torch.where(keep, policy.ratio, 0.0),
        "clipped": policy.clipped_low | policy.clipped_high,
        "clipped_low": policy.clipped_low,
        "clipped_high": policy.clipped_high,
        "kl": kl.detach(),
        "correction": torch.where(keep, weight, 0.0),
        "left_out": keep & (weight == 0.0),
    }
    return TokenLoss(
        loss=torch.where(keep, loss, 0.0),
        ratio=policy.ratio,
        sums={name: value.sum().to(loss.dtype) for name, value in sums.items()},
    )
