"""Seeds: one per run, offset by pipeline stage and expert rank as megatron-core does, and counter-based streams."""

import hashlib

import numpy as np
import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed


def seed_all(seed: int) -> None:
    """Seed torch and megatron-core's tensor-parallel RNG tracker for this process's place in the layout."""
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def stream(seed: int, *names: int | str) -> np.random.Generator:
    """An independent random stream that depends on its name only, not on what was drawn before or by whom.

    Philox keyed by a hash of (seed, names): resuming, re-batching or another layout draws the same numbers.
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))
