"""Estimators of KL(policy, reference) at one sampled token, by name; as a loss their gradient counts, not their value.

Shapes: T packed tokens of one micro-batch. x = pi_ref / pi_theta, r = pi_theta / pi_old.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# exp() of a larger log-ratio would overflow fp32 and turn the gradient of the branch not taken into NaN.
MAX_LOG_RATIO = 20.0


def k1(log_x: Tensor, log_ratio: Tensor) -> Tensor:
    """-ln x: unbiased as a value; its gradient by ln pi_theta is 1, whose mean pull is zero. For measuring only."""
    del log_ratio
    return -log_x


def k2(log_x: Tensor, log_ratio: Tensor) -> Tensor:
    """(ln x)^2 / 2: biased as a value; its gradient -ln x is that of the KL on samples of pi_theta itself."""
    del log_ratio
    return 0.5 * log_x.square()


def k3(log_x: Tensor, log_ratio: Tensor) -> Tensor:
    """x - ln x - 1 >= 0 (DeepSeekMath eq. 4, R1 eq. 2): unbiased as a value, gradient 1 - x."""
    del log_ratio
    return torch.exp(log_x) - log_x - 1.0


def unbiased(log_x: Tensor, log_ratio: Tensor) -> Tensor:
    """r * k3 (DeepSeek-V3.2, arXiv 2512.02556 section 3.1): gradient -r ln x, the KL's own on samples of pi_old."""
    return torch.exp(log_ratio) * k3(log_x, log_ratio)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "unbiased": unbiased}


def bounded_log_ratio(over: Tensor, under: Tensor, keep: Tensor) -> Tensor:
    """ln(p / q) from log-probabilities [T], within +-20 (no gradient beyond), 0 where keep is False.

    Masked before anything is computed: padding may hold anything, and inf * 0 would be NaN.
    """
    return torch.where(keep, over - under, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
