"""Deterministic order: a pure function of seed and epoch, the same on every rank and after every resume."""

import functools
import hashlib
import struct

import numpy as np

ROUNDS = 12  # of the Feistel network, each with a key of 64 bits; 8 still showed in the orders of five windows
_WORD = (1 << 64) - 1


@functools.lru_cache(maxsize=16)
def epoch_order(count: int, *, seed: int, epoch: int, stream: str) -> np.ndarray:
    """Permutation of range(count), int64, read-only. stream: names the use, so that uses of one seed are unrelated.

    For rows that are in memory anyway; shuffled() needs no memory.
    """
    order = generator(seed=seed, epoch=epoch, stream=stream).permutation(count)
    order.flags.writeable = False
    return order


def shuffled(place: int, count: int, *, seed: int, epoch: int, stream: str) -> int:
    """What stands at this place of a permutation of range(count) that is never written down; 0 <= place < count.

    A balanced Feistel network (Luby and Rackoff 1988) over the next power of four; what falls outside range(count) goes
    through it again until it falls inside (cycle walking, Black and Rogaway 2002), 4 times in the mean at the most.
    One place a call, in Python's integers: a sample asks for one, and NumPy takes ten times as long for a single one.
    """
    assert 0 <= place < count, (place, count)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = struct.unpack(f"<{ROUNDS}Q", hashlib.shake_256(f"{seed}/{stream}/{epoch}".encode()).digest(8 * ROUNDS))
    place = _feistel(place, keys, half=half)
    while place >= count:
        place = _feistel(place, keys, half=half)
    return place


def _feistel(value: int, keys: tuple[int, ...], *, half: int) -> int:
    """A permutation of the numbers of 2 * half bits. Its round function is the finaliser of SplitMix64."""
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        mixed = (right + key) & _WORD
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _WORD
        left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
    return left << half | right


def generator(*, seed: int, epoch: int, stream: str) -> np.random.Generator:
    """Philox generator keyed by seed, stream and epoch."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{epoch}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
