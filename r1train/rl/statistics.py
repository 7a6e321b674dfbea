"""What a rollout looked like, over all ranks: rewards and their parts, lengths, ends, reflection words."""

import torch
from megatron.core import parallel_state

from r1train.reward.base import Score
from r1train.rollout.types import Group

_PARTS = ("accuracy", "format", "language")


def rollout_statistics(groups: list[Group], scores: list[Score]) -> dict[str, float]:
    """Means over all samples of all data-parallel ranks. Collective.

    reward and reward/<part>: over samples that could be graded; grader_errors: how many could not;
    response_tokens, truncated_share: over all samples; mixed_groups_share: groups whose rewards differ, the ones that
    give a gradient.
    """
    samples = [sample for group in groups for sample in group.samples]
    graded = [score for score in scores if score.error is None]
    rest = iter(scores)
    rewards = [[next(rest).value for _ in group.samples] for group in groups]
    sums = torch.tensor(
        [
            len(samples),
            len(graded),
            len(groups),
            sum(score.value for score in graded),
            *(sum(score.parts.get(part, 0.0) for score in graded) for part in _PARTS),
            sum(len(sample.tokens) for sample in samples),
            sum(sample.truncated for sample in samples),
            sum(len(set(of_group)) > 1 for of_group in rewards),
        ],
        dtype=torch.float64,
        device=torch.cuda.current_device(),
    )
    torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    num_samples, num_graded, num_groups, reward, accuracy, form, language, tokens, truncated, mixed = sums.tolist()
    return {
        "reward": reward / max(num_graded, 1.0),
        "reward/accuracy": accuracy / max(num_graded, 1.0),
        "reward/format": form / max(num_graded, 1.0),
        "reward/language": language / max(num_graded, 1.0),
        "grader_errors": num_samples - num_graded,
        "response_tokens": tokens / num_samples,
        "truncated_share": truncated / num_samples,
        "mixed_groups_share": mixed / num_groups,
    }
