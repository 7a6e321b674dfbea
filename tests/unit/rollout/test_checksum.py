"""Sums over weights: blind to how tensors are cut and joined, not to what is in them."""

import torch

from r1train.rollout.checksum import difference, joined_sums, tensor_sums, value_sums
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


def cuts(ours: dict[str, torch.Tensor], place: int, size: int = 2) -> dict[str, torch.Tensor]:
    """What one of `size` ranks of vLLM holds: gate and up joined and cut by rows, down by columns, norm and bias whole.

    The embedding's rows are padded before the cut (6 of them here, so that each rank has 8).
    """
    gate, up = (ours[f"model.layers.0.mlp.{name}_proj.weight"].chunk(size)[place] for name in ("gate", "up"))
    embedding = torch.cat([ours["model.embed_tokens.weight"], torch.zeros(6, 6, dtype=torch.bfloat16)])
    return {
        "model.embed_tokens.weight": embedding.chunk(size)[place],
        "model.layers.0.mlp.gate_up_proj.weight": torch.cat([gate, up]),
        "model.layers.1.mlp.down_proj.weight": ours["model.layers.1.mlp.down_proj.weight"].chunk(size, dim=1)[place],
        "model.layers.1.input_layernorm.weight": ours["model.layers.1.input_layernorm.weight"],
        "model.layers.1.mlp.gate.e_score_correction_bias": ours["model.layers.1.mlp.gate.e_score_correction_bias"],
    }


def with_whole_tensors() -> dict[str, torch.Tensor]:
    """weights() with a norm of ones, as it begins, and a bias in fp32."""
    ones = torch.ones(6, dtype=torch.bfloat16)
    whole = {"input_layernorm.weight": ones, "mlp.gate.e_score_correction_bias": torch.linspace(-1, 1, 4)}
    return weights() | {f"model.layers.1.{name}": tensor for name, tensor in whole.items()}


def held(*ranks: dict[str, torch.Tensor]) -> dict[str, int]:
    return joined_sums([tensor_sums(rank.items()) for rank in ranks])


def test_cut_tensors_add_up_and_whole_ones_count_once():
    ours = with_whole_tensors()
    expected = value_sums(ours.items())
    assert sorted(expected) == ["0/bfloat16", "1/bfloat16", "1/float32", "outer/bfloat16"]
    assert held(*(cuts(ours, place) for place in (0, 1))) == expected
    # One rank: nothing to join.
    assert held(cuts(ours, 0, size=1)) == expected
    # Experts that are whole on one rank each have the same name on both.
    theirs = [{"model.layers.1.mlp.experts.w2_weight": part} for part in torch.randn(4, 6, 8).chunk(2)]
    assert held(*theirs) == value_sums([("layers.1.", torch.cat([one[name] for one in theirs for name in one]))])


def test_every_change_of_what_ranks_hold_together_shows():
    ours = with_whole_tensors()
    expected = value_sums(ours.items())
    first, second = cuts(ours, 0), cuts(ours, 1)
    down, gate_up = "1.mlp.down_proj.weight", "0.mlp.gate_up_proj.weight"
    stale = {**second, f"model.layers.{down}": -second[f"model.layers.{down}"]}
    assert difference(held(first, stale), expected) == ["1/bfloat16"]
    # Both ranks got the first cut, and so the sum of one of them counts.
    twice = {**second, f"model.layers.{gate_up}": first[f"model.layers.{gate_up}"]}
    assert difference(held(first, twice), expected) == ["0/bfloat16"]
    # The norm, which is whole on each, is stale on one rank; then on both alike.
    name = "model.layers.1.input_layernorm.weight"
    assert difference(held(first, {**second, name: 2 * second[name]}), expected) == ["1/bfloat16"]
    assert difference(held(*({**rank, name: 2 * rank[name]} for rank in (first, second))), expected) == ["1/bfloat16"]
    # A layer that never came has the same random values on every rank, and one that came to another layer is missed.
    never = [{**rank, f"model.layers.{down}": torch.full((6, 4), 0.3).bfloat16()} for rank in (first, second)]
    assert difference(held(*never), expected) == ["1/bfloat16"]
    moved = [{name.replace("layers.0", "layers.2"): one for name, one in rank.items()} for rank in (first, second)]
    assert difference(held(*moved), expected) == ["0/bfloat16", "2/bfloat16"]
    lost = {name: one for name, one in second.items() if "gate_up" not in name}
    assert difference(held(first, lost), expected) == ["0/bfloat16"]


def test_sums_of_cuts_wrap_as_int64_does():
    large = [{"a": ("outer/float32", 2**62)}, {"a": ("outer/float32", 2**62 + 5)}]
    assert joined_sums(large) == {"outer/float32": -(2**63) + 5}
    assert joined_sums([{"a": ("outer/float32", 3)}, {"a": ("outer/float32", -3)}]) == {}
