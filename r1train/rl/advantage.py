"""Group-relative advantages (DeepSeekMath, arXiv 2402.03300, section 4.1.2)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

AdvantageStd = Literal["population", "sample", "none"]


def group_advantages(
    values: Tensor, group_ids: Sequence[str], *, std: AdvantageStd, valid: Tensor | None = None
) -> Tensor:
    """A_i = (R_i - mean of its group) / std of its group; float64 arithmetic, float32 result.

    values: rewards [S]; group_ids: the group of each sample, any order, any group sizes; std: divisor n
    ("population") or n - 1 ("sample"), "none" leaves R_i - mean (Dr. GRPO, arXiv 2503.20783).
    valid: bool [S], False where the sample has no reward (its grader failed): it enters no statistic and gets 0.
    There is no epsilon: a group whose rewards are all equal (a group of one too) gets 0 by this rule.
    Raises ValueError when a valid reward is not finite.
    """
    if values.shape != (len(group_ids),):
        raise ValueError(f"values have shape {tuple(values.shape)}, group_ids {len(group_ids)} entries")
    keep = torch.ones(len(group_ids), dtype=torch.bool) if valid is None else valid.bool()
    rewards = values.double()
    if not torch.isfinite(rewards[keep]).all():
        raise ValueError("a reward that is marked valid is not finite")
    members: dict[str, list[int]] = {}
    for position, group in enumerate(group_ids):
        if keep[position]:
            members.setdefault(group, []).append(position)
    advantages = torch.zeros(len(group_ids), dtype=torch.float64)
    for positions in members.values():
        advantages[positions] = _normalised(rewards[positions], std)
    return advantages.float()


def _normalised(rewards: Tensor, std: AdvantageStd) -> Tensor:
    # Equal rewards are compared, not their std: rounding of the mean would leave a tiny std and advantages of +-1.
    if rewards.min() == rewards.max():
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean()
    match std:
        case "none":
            return centred
        case "population":
            return centred / rewards.std(correction=0)
        case "sample":
            return centred / rewards.std(correction=1)
    raise ValueError(f"std = {std!r} is not one of population, sample, none")
