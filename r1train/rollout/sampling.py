"""Choosing tokens from logits: temperature, top-p, and random numbers that belong to a sample, not to a batch."""

import numpy as np
import torch

from r1train.dist.seed import stream
from r1train.rollout.engine import SamplingParams

BLOCK = 256  # probabilities that are summed before the token is looked for


def sample_noise(seed: int, name: str, *, prompt_id: str, index: int, count: int) -> np.ndarray:
    """Uniform numbers [count], float32, one per response token of one sample.

    They depend on (seed, name, prompt, index) only: another batching, layout or a resume draws the same. name: what
    the samples are for, e.g. "grpo/12" (stage and step).
    """
    return stream(seed, "sample", name, prompt_id, index).random(count, dtype=np.float32)


def noise_of(samples: list[tuple[str, int]], params: SamplingParams) -> torch.Tensor:
    """Noise of (prompt id, index) samples over the whole budget: float32 [samples, budget]; one row of 0 for none."""
    budget = params.max_response_tokens
    rows = [
        sample_noise(params.seed, params.name, prompt_id=prompt_id, index=index, count=budget)
        for prompt_id, index in samples
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(1, budget)


def choose_tokens(
    logits: torch.Tensor, noise: torch.Tensor, *, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [b, V] float32, noise [b] in [0, 1) -> tokens [b] int64 and their logprobs [b] float32.

    Inverse CDF over the smallest set of most likely tokens whose mass reaches top_p (arXiv 1904.09751 section 3.1).
    The logprob is that of the tempered distribution before top-p, the one the trainer computes.
    Temperature 0 is greedy decoding, for evaluation: the most likely token, with its logprob at temperature 1.
    """
    if temperature == 0.0:
        logprobs = torch.log_softmax(logits, dim=-1)
        greedy = logprobs.argmax(dim=-1)
        return greedy, logprobs.gather(1, greedy[:, None])[:, 0]
    probabilities = torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
    if top_p < 1.0:
        ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        mass = ordered.cumsum(dim=-1)
        # A token stays when the mass before it has not reached top_p: the first one always stays.
        ordered = ordered.masked_fill_(mass - ordered >= top_p, 0.0)
        chosen = tokens.gather(1, _place_of(ordered, noise))
    else:
        chosen = _place_of(probabilities, noise)
    return chosen[:, 0], probabilities.gather(1, chosen)[:, 0].log()


def _place_of(mass: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """mass [b, V] float32, noise [b] -> the first place [b, 1] up to which more than noise * total lies.

    Sums are in double. First the block of BLOCK places, from the sums of blocks; then the place in it: a running sum
    over all places would take longer than all the rest.
    """
    rows, places = mass.shape
    whole = places // BLOCK
    blocks = mass[:, : whole * BLOCK].reshape(rows, whole, BLOCK).sum(dim=-1, dtype=torch.float64)
    if whole * BLOCK < places:
        rest = mass[:, whole * BLOCK :].sum(dim=-1, keepdim=True, dtype=torch.float64)
        blocks = torch.cat((blocks, rest), dim=-1)
    ends = blocks.cumsum(dim=-1)
    wanted = noise.double()[:, None] * ends[:, -1:]
    block = _first_above(ends, wanted)
    before = ends.gather(1, (block - 1).clamp_(min=0)).masked_fill_(block == 0, 0.0)
    inside = block * BLOCK + torch.arange(BLOCK, device=mass.device)  # [b, BLOCK]
    within = mass.gather(1, inside.clamp(max=places - 1)).double().masked_fill_(inside >= places, 0.0)
    return block * BLOCK + _first_above(before + within.cumsum(dim=-1), wanted)


def _first_above(ends: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The first place [b, 1] where the running sum [b, n] exceeds what is wanted [b, 1].

    Rounding may want the very end: the place that completes the sum takes it, never one without mass.
    """
    place = torch.searchsorted(ends, wanted, right=True)
    return torch.minimum(place, torch.searchsorted(ends, ends[:, -1:].contiguous()))
