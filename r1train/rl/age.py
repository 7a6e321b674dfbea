"""How old the weights were that drew the tokens of an update: the gauge of asynchronous generation."""

import torch
from megatron.core import parallel_state

from r1train.rl.batch import TrainSample


def ages(samples: list[TrainSample], *, step: int) -> tuple[int, int, int]:
    """(sum over tokens of their age, tokens, largest age) of these samples at an update after `step` others.

    The age of a token: updates between the weights that drew it and those that learn from it.
    """
    pieces = [(step - version, tokens) for sample in samples for version, tokens in sample.drawn_by if tokens]
    return (
        sum(age * tokens for age, tokens in pieces),
        sum(tokens for _, tokens in pieces),
        max((age for age, _ in pieces), default=0),
    )


def policy_age(samples: list[TrainSample], *, step: int) -> dict[str, float]:
    """policy_age_mean over tokens and policy_age_max, over all data-parallel ranks' samples. Collective."""
    total, tokens, largest = ages(samples, step=step)
    sums = torch.tensor([total, tokens], dtype=torch.int64, device=torch.cuda.current_device())
    most = torch.tensor(largest, dtype=torch.int64, device=torch.cuda.current_device())
    group = parallel_state.get_data_parallel_group()
    torch.distributed.all_reduce(sums, group=group)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX, group=group)
    return {"policy_age_mean": sums[0].item() / max(sums[1].item(), 1), "policy_age_max": float(most.item())}
