"""Blending and windows: shares, coverage, purity in position, slices of ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1train.data.blend import blend
from r1train.data.order import epoch_order
from r1train.data.pretrain import PretrainSource
from r1train.data.ring import TokenRing
from r1train.errors import DataError


def source(folder, **changes):
    arguments = {"weights": {"small": 1.0, "large": 3.0}, "seq_length": 16, "seed": 9, "packing": "concatenate"}
    return PretrainSource(folder, **{**arguments, **changes})


def test_blend_by_hand():
    cycle = blend([1.0, 3.0])
    # After sample n the first corpus is owed n/4, the second 3n/4; ties go to the first.
    assert cycle.corpus.tolist() == [1, 0, 1, 1]
    assert cycle.before.tolist() == [0, 0, 1, 2]
    assert cycle.per_cycle.tolist() == [1, 3]
    assert [cycle.at(index) for index in (0, 1, 3, 4, 5, 4003)] == [(1, 0), (0, 0), (1, 2), (1, 3), (0, 1), (1, 3002)]


def test_blend_is_never_a_sample_off():
    weights = np.array([0.15, 0.05, 0.8])
    cycle = blend(weights.tolist())
    corpus = np.array([cycle.at(index)[0] for index in range(1000)])
    given = np.stack([np.cumsum(corpus == index) for index in range(3)], axis=1)
    owed = weights * np.arange(1, 1001)[:, None]
    assert np.abs(given - owed).max() <= 1.0
    assert given[-1].tolist() == [150, 50, 800]


def test_blend_of_awkward_weights():
    assert blend([1.0, 1.0, 1.0]).corpus.tolist() == [0, 1, 2]
    assert blend([0.0003, 0.9997]).per_cycle.tolist() == [3, 9997]
    # 1 : 3 million: more samples than a cycle may have, so rounded, and the small one still comes.
    assert blend([1.0, 3e6]).per_cycle.tolist() == [1, 100_000]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_blend_invariants(weights):
    """Every n-th sample of a corpus follows its (n - 1)-th, and a cycle holds whole shares."""
    cycle = blend([weight / 10 for weight in weights])
    for corpus, count in enumerate(cycle.per_cycle.tolist()):
        assert cycle.before[cycle.corpus == corpus].tolist() == list(range(count))
        assert count * sum(weights) == weights[corpus] * len(cycle.corpus)


def test_windows_cover_an_epoch_once(folder):
    one = source(folder, weights={"small": 2.0})
    ring = TokenRing(folder / "small")
    windows = ring.num_tokens // 16
    flat = ring.read(0, ring.num_tokens)
    epochs = [one.batch(epoch * windows, windows).numpy() for epoch in range(2)]
    for samples in epochs:
        assert samples.shape == (windows, 17)
        by_first = {tuple(sample[:-1]): sample[-1] for sample in samples}
        assert len(by_first) == windows
        # Targets of an epoch are a stretch of the ring, all but the remainder of it.
        targets = np.sort(samples[:, 1:].ravel())
        assert len(targets) == windows * 16 > ring.num_tokens - 16
        spare = np.bincount(flat, minlength=300) - np.bincount(targets, minlength=300)
        assert spare.min() >= 0
        assert spare.sum() == ring.num_tokens % 16
    assert not np.array_equal(epochs[0], epochs[1])


def test_every_window_is_in_the_ring(folder):
    mixed = source(folder)
    rings = [TokenRing(folder / name) for name in ("small", "large")]
    doubled = [np.concatenate([ring.read(0, ring.num_tokens)] * 2) for ring in rings]
    texts = [" ".join(map(str, flat)) for flat in doubled]
    for index in range(40):
        corpus, _ = blend([1.0, 3.0]).at(index)
        assert " ".join(map(str, mixed.sample(index))) in texts[corpus]


def test_pure_in_position_and_seed(folder):
    through = source(folder).batch(0, 2100)  # beyond two blend cycles and many epochs
    assert through.dtype == torch.int64
    for start in (0, 7, 999, 1001, 2095):
        assert torch.equal(source(folder).batch(start, 4), through[start : start + 4])
    assert not torch.equal(source(folder, seed=10).batch(0, 4), through[:4])


def test_ranks_share_a_batch(folder):
    whole = source(folder).batch(12, 8)
    parts = [source(folder).batch(12, 8, dp_rank=rank, dp_size=4) for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole)


def test_epoch_order():
    first = epoch_order(100, seed=1, epoch=0, stream="a")
    assert sorted(first.tolist()) == list(range(100))
    others = [(2, 0, "a"), (1, 1, "a"), (1, 0, "b")]
    for seed, epoch, stream in others:
        assert epoch_order(100, seed=seed, epoch=epoch, stream=stream).tolist() != first.tolist()


def test_refuses(folder, tmp_path):
    with pytest.raises(DataError, match=r"none.bin: missing or empty"):
        source(folder, weights={"none": 1.0})
    with pytest.raises(DataError, match="weights below 0"):
        source(folder, weights={"small": 1.0, "large": -1.0})
    with pytest.raises(DataError, match="none above"):
        source(folder, weights={"small": 0.0})
    with pytest.raises(DataError, match="do not fill one sequence of 99999"):
        source(folder, seq_length=99999)
    (tmp_path / "cut.bin").write_bytes(b"")
    (tmp_path / "cut.idx").write_bytes(b"")
    with pytest.raises(DataError, match="cut.bin: missing or empty"):
        source(tmp_path, weights={"cut": 1.0})


def test_weight_zero_leaves_out(folder):
    assert torch.equal(
        source(folder, weights={"small": 0.0, "large": 1.0}).batch(0, 5),
        source(folder, weights={"large": 1.0}).batch(0, 5),
    )
