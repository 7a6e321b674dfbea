"""Deterministic order: a pure function of seed and epoch, the same on every rank and after every resume."""

import functools
import hashlib

import numpy as np


@functools.lru_cache(maxsize=16)
def epoch_order(count: int, *, seed: int, epoch: int, stream: str) -> np.ndarray:
    """Permutation of range(count), int64, read-only. stream: names the use, so that uses of one seed are unrelated."""
    order = generator(seed=seed, epoch=epoch, stream=stream).permutation(count)
    order.flags.writeable = False
    return order


def generator(*, seed: int, epoch: int, stream: str) -> np.random.Generator:
    """Philox generator keyed by seed, stream and epoch."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{epoch}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
