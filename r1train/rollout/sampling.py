"""Choosing tokens from logits: temperature, top-p, and random numbers that belong to a sample, not to a batch."""

import numpy as np
import torch

from r1train.dist.seed import stream
from r1train.rollout.engine import SamplingParams


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
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    if top_p < 1.0:
        ordered, tokens = logprobs.exp().sort(dim=-1, descending=True, stable=True)
        mass = ordered.cumsum(dim=-1)
        # A token stays when the mass before it has not reached top_p: the first one always stays.
        ordered = ordered.masked_fill(mass - ordered >= top_p, 0.0)
    else:
        ordered = logprobs.exp()
        tokens = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    mass = ordered.double().cumsum(dim=-1)
    total = mass[:, -1:].contiguous()
    place = torch.searchsorted(mass, noise.double()[:, None] * total, right=True)
    # Rounding may put the noise at the very end: the token whose mass completes the total takes it.
    last = torch.searchsorted(mass, total)
    chosen = tokens.gather(1, torch.minimum(place, last))
    return chosen[:, 0], logprobs.gather(1, chosen)[:, 0]
