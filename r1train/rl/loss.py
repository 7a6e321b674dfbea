"""GRPO's per-token loss: clipped ratio and k3 KL (DeepSeekMath eq. 3 and 4; DeepSeek-R1 eq. 1 to 3).

Shapes: T packed tokens of one micro-batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# exp() of a larger log-ratio would overflow fp32 and turn the gradient of the branch not taken into NaN.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """loss: [T], 0 where the mask is 0, carries the gradient.

    sums: detached scalars to add over micro-batches and ranks (tokens, clipped, kl, ratio), so that e.g. the clip share
    is clipped / tokens. ratio_max: detached scalar to reduce with max (0 when there is no token).
    """

    loss: Tensor
    sums: dict[str, Tensor]
    ratio_max: Tensor


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL estimate x - ln x - 1 >= 0 with x = pi_ref / pi_theta (DeepSeekMath eq. 4); its gradient by logprobs is 1 - x.

    The log-ratio is kept within +-20; beyond it the gradient is 0.
    """
    return _k3_of_log_ratio(ref_logprobs - logprobs)


def _k3_of_log_ratio(log_x: Tensor) -> Tensor:
    log_x = log_x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.exp(log_x) - log_x - 1.0


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities of the same tokens, each [T]: policy (with gradient), at rollout, and of the reference.

    reference None: no reference model is kept (kl_coef 0).
    """

    policy: Tensor
    old: Tensor
    reference: Tensor | None


def grpo_token_loss(
    logprobs: TokenLogprobs,
    *,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_coef * k3 per token, r = pi_theta / pi_old.

    advantages: [T], the sample's advantage at each of its tokens; mask: [T], 1 on response tokens.
    R1's epsilon 10 is clip_low = clip_high = 10, i.e. r within [-9, 11]: only r > 11 with A > 0 is ever clipped.
    A token counts as clipped when the clip removes its gradient. Raises ValueError for kl_coef without a reference.
    """
    if kl_coef != 0.0 and logprobs.reference is None:
        raise ValueError(f"kl_coef = {kl_coef} needs reference logprobs")
    keep = mask.bool()
    # Masked before exp(): padding may hold anything, and inf * 0 would be NaN.
    log_ratio = torch.where(keep, logprobs.policy - logprobs.old, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(log_ratio)
    low, high = 1.0 - clip_low, 1.0 + clip_high
    loss = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    kl = torch.zeros_like(ratio)
    if logprobs.reference is not None:
        kl = _k3_of_log_ratio(torch.where(keep, logprobs.reference - logprobs.policy, 0.0))
        loss = loss + kl_coef * kl
    clipped = keep & (((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0)))
    seen = torch.where(keep, ratio, 0.0).detach()
    return TokenLoss(
        loss=torch.where(keep, loss, 0.0),
        sums={
            "tokens": keep.sum().float(),
            "clipped": clipped.sum().float(),
            "kl": kl.sum().detach(),
            "ratio": seen.sum(),
        },
        ratio_max=seen.max() if seen.numel() else seen.sum(),
    )
