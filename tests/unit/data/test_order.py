"""The order of pre-training's windows: a permutation that is computed place by place."""

import tracemalloc

import numpy as np
import pytest

from r1train.data.order import shuffled
from r1train.data.pretrain import PretrainSource

V3_WINDOWS = 14_800_000_000_000 // 4096  # 3.6e9: DeepSeek-V3's tokens in its sequences
LARGE = 65_003  # prime, little below a power of four: one pass through the network each


def order(count: int, *, seed: int = 1, epoch: int = 0, stream: str = "a") -> list[int]:
    return [shuffled(place, count, seed=seed, epoch=epoch, stream=stream) for place in range(count)]


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return np.array(order(LARGE))


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 17, 97, 255, 256, 257, 1021, 4099])
def test_every_number_once(count):
    assert sorted(order(count)) == list(range(count))


def test_every_number_of_many_once(large):
    assert np.array_equal(np.sort(large), np.arange(LARGE))


def test_seed_epoch_and_stream_name_orders_of_their_own():
    """Two unrelated permutations agree in one place in the mean, in more than 8 with probability 1e-6."""
    first = order(1000)
    for change in ({"seed": 2}, {"epoch": 1}, {"stream": "b"}):
        assert sum(a == b for a, b in zip(first, order(1000, **change), strict=True)) <= 8, change
    assert order(1000) == first


def test_the_same_on_every_platform():
    """Integers of a fixed width only: these are the numbers wherever it runs, and resumed runs depend on them."""
    assert order(10) == [1, 5, 6, 8, 7, 9, 3, 0, 2, 4]
    places = (0, 1, 3_599_999_999)
    found = [shuffled(place, 3_600_000_000, seed=1234, epoch=2, stream="pretrain/x") for place in places]
    assert found == [2386460803, 3339667355, 2447353038]


def test_every_window_is_as_likely_at_every_place():
    """Ten windows, 2000 epochs: chi-square of place against window, 81 degrees of freedom; above 138 in 1 of 10,000."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[range(10), order(10, epoch=epoch)] += 1
    assert chi_square(counts) < 138.0


def test_neighbours_are_unrelated(large):
    """Coarse, fine and from one place to the next; bounds that chance passes once in 10,000 or less."""
    places = np.arange(LARGE)
    assert chi_square(np.histogram2d(places, large, bins=20)[0]) < 470.0  # 361 degrees of freedom
    assert chi_square(np.histogram2d(places % 16, large % 16, bins=16)[0]) < 316.0  # 225
    assert chi_square(np.histogram(np.diff(large) % LARGE, bins=100)[0]) < 157.0  # 99


def test_all_of_v3s_windows_cost_nothing():
    """A materialised order has 29 GB; 200 samples of 17 corpora in turn would take one such order each."""
    tracemalloc.start()
    found = {
        shuffled(V3_WINDOWS - 1 - place, V3_WINDOWS, seed=1, epoch=0, stream=f"pretrain/{place % 17}")
        for place in range(200)
    }
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) >= 199 and min(found) >= 0 and max(found) < V3_WINDOWS
    assert peak < 1_000_000


def test_windows_of_a_corpus_too_large_to_be_shuffled_in_memory(folder):
    """A stand-in for 14.8T tokens: a sample is there at once, and near-by samples are not neighbours in the text."""
    source = PretrainSource(folder, {"small": 1.0}, seq_length=16, seed=9, packing="concatenate")
    (windows,) = source._windows
    ring = windows._ring
    starts = []
    windows.count, ring.num_tokens = V3_WINDOWS, 16 * V3_WINDOWS
    ring.read = lambda start, count: starts.append(start) or np.zeros(count, dtype=np.int64)
    source.batch(10**9, 50)
    assert np.diff(np.sort(np.array(starts)) // 16).min() > 1
