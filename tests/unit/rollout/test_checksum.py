"""Sums over weights: blind to how tensors are cut and joined, not to what is in them."""

import torch

from r1train.rollout.checksum import difference, value_sums
from r1train.rollout.push import CountedWeights, buckets


def weights(dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "model.embed_tokens.weight": (10, 6),
        "model.layers.0.mlp.gate_proj.weight": (8, 6),
        "model.layers.0.mlp.up_proj.weight": (8, 6),
        "model.layers.1.mlp.down_proj.weight": (6, 8),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def test_joined_transposed_and_padded_tensors_have_the_same_sums():
    ours = weights()
    gate, up = ours["model.layers.0.mlp.gate_proj.weight"], ours["model.layers.0.mlp.up_proj.weight"]
    theirs = {
        "model.layers.0.mlp.gate_up_proj.weight": torch.cat([gate, up]),
        "model.layers.1.mlp.down_proj.weight": ours["model.layers.1.mlp.down_proj.weight"].T,
        "embedding": torch.cat([ours["model.embed_tokens.weight"], torch.zeros(6, 6, dtype=torch.bfloat16)]),
    }
    expected = value_sums(ours.items())
    assert sorted(expected) == ["0/bfloat16", "1/bfloat16", "outer/bfloat16"]
    assert value_sums(theirs.items()) == expected


def test_every_change_shows():
    expected = value_sums(weights().items())
    one_bit = weights()
    one_bit["model.layers.1.mlp.down_proj.weight"][2, 3] += 0.02
    assert difference(value_sums(one_bit.items()), expected) == ["1/bfloat16"]
    stale = weights()
    stale["model.embed_tokens.weight"] = -stale["model.embed_tokens.weight"]
    assert difference(value_sums(stale.items()), expected) == ["outer/bfloat16"]
    swapped = {name.replace("layers.0", "layers.2"): value for name, value in weights().items()}
    assert difference(value_sums(swapped.items()), expected) == ["0/bfloat16", "2/bfloat16"]
    missing = weights()
    del missing["model.layers.0.mlp.up_proj.weight"]
    assert difference(value_sums(missing.items()), expected) == ["0/bfloat16"]
    # Compensating changes, which a plain sum would not see.
    moved = weights(torch.float32)
    before = value_sums(moved.items())
    moved["model.layers.0.mlp.up_proj.weight"].view(torch.int32)[0, 0] += 1
    moved["model.layers.0.mlp.up_proj.weight"].view(torch.int32)[0, 1] -= 1
    assert difference(value_sums(moved.items()), before) == ["0/float32"]


def test_counting_on_the_way_gives_the_same_sums():
    counted = CountedWeights(weights().items())
    assert dict(counted).keys() == weights().keys()
    assert counted.sums == value_sums(weights().items())


def test_buckets_stay_below_the_cap_and_keep_the_order():
    """Sizes 120, 96, 96, 96 bytes: two fit 192, the first is larger than 100 and comes alone."""
    sizes = [[tensor.numel() * 2 for _, tensor in bucket] for bucket in buckets(weights().items(), max_bytes=192)]
    assert sizes == [[120], [96, 96], [96]]
    assert [len(bucket) for bucket in buckets(weights().items(), max_bytes=100)] == [1, 1, 1, 1]
    names = [name for bucket in buckets(weights().items(), max_bytes=1000) for name, _ in bucket]
    assert names == list(weights())
