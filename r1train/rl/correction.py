"""Weights and masks for samples whose engine gave them another probability than the trainer, by name.

rho = pi_old / mu: the trainer's probability of a sampled token over the engine's. Nothing here carries a gradient, and
what is left out stays in the loss's denominators. Shapes: T packed tokens of one micro-batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from r1train.config.schema_rl import CorrectionConfig
from r1train.rl.kl import MAX_LOG_RATIO
from r1train.rl.segments import segment_mean, segment_sum

Rule = Callable[[Tensor, Tensor, Tensor, CorrectionConfig], Tensor]


def token_tis(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    """min(rho, C) per token (truncated importance sampling; Yao et al. 2025, after Retrace, arXiv 1606.02647)."""
    del keep, segments
    return torch.exp(log_rho).clamp(max=cfg.weight_high)


def sequence_tis(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    """min(product of the sequence's rho, C) at each of its tokens (arXiv 2512.23075): no bias but the truncation's."""
    del keep
    return torch.exp(_bounded(segment_sum(log_rho, segments))).clamp(max=cfg.weight_high)


def icepop(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    """rho within [low, high], else 0 (arXiv 2510.18855): a token on which both disagree teaches nothing."""
    del keep, segments
    rho = torch.exp(log_rho)
    return torch.where(_within(rho, cfg.weight_low, cfg.weight_high), rho, 0.0)


def ratio_mask(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    """1 for sequences whose product of rho lies within [mask_low, mask_high], else 0."""
    del keep
    rho = torch.exp(_bounded(segment_sum(log_rho, segments)))
    return _within(rho, cfg.mask_low, cfg.mask_high).to(log_rho.dtype)


def geometric_mask(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    """1 for sequences whose exp(mean ln rho) lies within [mask_low, mask_high], else 0: independent of their length."""
    rho = torch.exp(segment_mean(log_rho, keep, segments))
    return _within(rho, cfg.mask_low, cfg.mask_high).to(log_rho.dtype)


def _ones(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    del keep, segments, cfg
    return torch.ones_like(log_rho)


WEIGHTS: dict[str, Rule] = {"none": _ones, "tis": token_tis, "sequence-tis": sequence_tis, "icepop": icepop}
SEQUENCE_MASKS: dict[str, Rule] = {"none": _ones, "ratio": ratio_mask, "geometric": geometric_mask}


@torch.no_grad()
def correction(log_rho: Tensor, keep: Tensor, segments: Tensor, cfg: CorrectionConfig) -> Tensor:
    """Factor of each token's policy loss [T], float32 like log_rho [T], which is 0 where keep is False."""
    weight = WEIGHTS[cfg.weight](log_rho, keep, segments, cfg)
    return weight * SEQUENCE_MASKS[cfg.sequence_mask](log_rho, keep, segments, cfg)


@torch.no_grad()
def off_policy_mask(log_drift: Tensor, advantages: Tensor, keep: Tensor, segments: Tensor, delta: float) -> Tensor:
    """0 for sequences with A < 0 whose mean ln(mu / pi_theta) exceeds delta, else 1 (DeepSeek-V3.2, 2512.02556 s3.1).

    log_drift: ln(mu / pi_theta) [T], mu being what the engine reported, so staleness and mismatch both count.
    """
    drifted = segment_mean(log_drift, keep, segments) > delta
    return (~(drifted & (advantages < 0))).to(log_drift.dtype)


def _bounded(log_product: Tensor) -> Tensor:
    return log_product.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _within(rho: Tensor, low: float | None, high: float | None) -> Tensor:
    assert low is not None and high is not None, "the config check asks for both bounds"
    return (rho >= low) & (rho <= high)
