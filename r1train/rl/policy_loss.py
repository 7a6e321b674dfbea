"""Policy losses by name, each from the log-ratio of the policy in training to the policy of the rollout.

Shapes: T packed tokens of one micro-batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from r1train.rl.segments import segment_mean


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """What a policy loss reads, each [T]; where keep is False everything is 0.

    logprobs: ln pi_theta, with gradient. log_ratio: ln(pi_theta / pi_old), with gradient, within +-20. advantages: the
    sample's advantage at each of its tokens. keep: bool, response tokens. segments: int64, the sequence of each token.
    low, high: bounds 1 - clip_low and 1 + clip_high of the ratio.
    """

    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    keep: Tensor
    segments: Tensor
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """loss: [T], to minimise, carries the gradient. ratio: [T], the ratio that was compared with the bounds, detached.

    clipped_low, clipped_high: bool [T], where that bound changed the gradient.
    """

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped_ratio(tokens: PolicyTokens) -> PolicyLoss:
    """-min(r A, clip(r, low, high) A) per token: GRPO (arXiv 2402.03300 eq. 3), Dr. GRPO, DAPO (2503.14476 eq. 8).

    R1's epsilon 10 keeps r within [-9, 11]: only r > 11 with A > 0 is ever clipped.
    """
    return _clipped(torch.exp(tokens.log_ratio), tokens)


def gspo(tokens: PolicyTokens) -> PolicyLoss:
    """The same with one ratio per sequence, s = exp(mean_t ln r_t) (arXiv 2507.18071 eq. 5 and 7).

    Every token carries its sequence's loss, so that the mean over tokens gives it back.
    """
    return _clipped(torch.exp(segment_mean(tokens.log_ratio, tokens.keep, tokens.segments)), tokens)


def gspo_token(tokens: PolicyTokens) -> PolicyLoss:
    """s_t = sg(s) * pi_theta / sg(pi_theta): value and clip of the sequence, gradient of the token (2507.18071 eq. 14).

    Its gradient equals that of gspo where all tokens of a sequence have the same advantage.
    """
    sequence = segment_mean(tokens.log_ratio, tokens.keep, tokens.segments).detach()
    return _clipped(torch.exp(sequence + tokens.log_ratio - tokens.log_ratio.detach()), tokens)


def cispo(tokens: PolicyTokens) -> PolicyLoss:
    """-sg(clip(r, low, high)) A ln pi_theta: every token keeps a gradient, its weight is bounded (2506.13585 eq. 4)."""
    ratio = torch.exp(tokens.log_ratio).detach()
    return PolicyLoss(
        loss=-ratio.clamp(tokens.low, tokens.high) * tokens.advantages * tokens.logprobs,
        ratio=ratio,
        clipped_low=tokens.keep & (ratio < tokens.low),
        clipped_high=tokens.keep & (ratio > tokens.high),
    )


POLICY_LOSSES: dict[str, Callable[[PolicyTokens], PolicyLoss]] = {
    "clip": clipped_ratio,
    "gspo": gspo,
    "gspo-token": gspo_token,
    "cispo": cispo,
}


def _clipped(ratio: Tensor, tokens: PolicyTokens) -> PolicyLoss:
    advantages = tokens.advantages
    return PolicyLoss(
        loss=-torch.minimum(ratio * advantages, ratio.clamp(tokens.low, tokens.high) * advantages),
        ratio=ratio.detach(),
        clipped_low=tokens.keep & (ratio < tokens.low) & (advantages < 0),
        clipped_high=tokens.keep & (ratio > tokens.high) & (advantages > 0),
    )
