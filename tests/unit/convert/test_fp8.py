"""Block quantisation: the released rule, ragged edges, and what a round trip keeps."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1train.convert.fp8 import dequantise, quantise, quantise_whole, scale_shape, squared_error

SIDES = st.integers(min_value=1, max_value=300)


def test_kv_a_proj_of_v3_has_5_by_56_scales():
    """576 rows are no multiple of 128 (recipe facts, released checkpoint)."""
    assert scale_shape((576, 7168)) == (5, 56)


def test_scale_is_the_largest_magnitude_over_448():
    weight = torch.zeros(130, 129)
    weight[0, 0], weight[5, 7], weight[129, 128] = 2.1, -8.96, 0.448
    values, scale = quantise(weight)
    torch.testing.assert_close(scale, torch.tensor([[0.02, 1.0], [1.0, 0.001]]))
    assert values[5, 7].float() == -448.0 and values[0, 0].float() == 104.0  # 2.1 / 0.02 = 105; e4m3 steps by 8
    assert values[129, 128].float() == 448.0
    back = dequantise(values, scale, first_row=0, dtype=torch.float32)
    torch.testing.assert_close(back[0, 0], torch.tensor(2.08))


def test_rows_in_the_middle_find_their_block():
    weight = torch.randn(300, 130, generator=torch.Generator().manual_seed(1))
    values, scale = quantise(weight)
    whole = dequantise(values, scale, first_row=0, dtype=torch.bfloat16)
    for start, stop in ((0, 1), (100, 140), (127, 129), (250, 300)):
        part = dequantise(values[start:stop], scale, first_row=start, dtype=torch.bfloat16)
        assert torch.equal(part, whole[start:stop])


@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_all_blocks_at_once_gives_the_same_bits(rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    weight[:1] = 0.0
    before = weight.clone()
    values, scale = quantise_whole(weight)
    expected_values, expected_scale = quantise(weight)
    assert torch.equal(values.view(torch.uint8), expected_values.view(torch.uint8))
    assert torch.equal(scale, expected_scale)
    assert values.is_contiguous() and torch.equal(weight, before)


def test_weight_is_not_changed():
    weight = torch.randn(130, 130)
    before = weight.clone()
    quantise(weight)
    assert torch.equal(weight, before)


@settings(max_examples=40, deadline=None)
@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 2**31), scale=st.sampled_from([1e-6, 0.02, 1.0, 1e4]))
def test_round_trip_over_bf16_keeps_every_value(rows, columns, seed, scale):
    """FP8 -> BF16 -> FP8: values bit for bit, scales to BF16's 2^-8, whatever the block's edges are.

    A block's largest value is 448, so the second scale differs from the first by BF16's rounding only, and no value
    moves half a step of e4m3 (1/16 of it).
    """
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    values, scales = quantise(weight)
    restored = dequantise(values, scales, first_row=0, dtype=torch.bfloat16)
    again, scales_again = quantise(restored)
    torch.testing.assert_close(scales_again, scales, rtol=2**-8, atol=0)
    assert torch.equal(again.float(), values.float())


@settings(max_examples=20, deadline=None)
@given(rows=SIDES, columns=SIDES)
def test_error_is_within_half_a_step(rows, columns):
    """e4m3 has 3 bits of mantissa: at most 1/16 of a normal value, and about 0.026 in the mean for a Gaussian."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 1000 + columns))
    values, scales = quantise(weight)
    back = dequantise(values, scales, first_row=0, dtype=torch.float32)
    largest = weight.abs().max()
    assert ((back - weight).abs() <= weight.abs() / 16 + largest * 2**-9 / 448 + 1e-9).all()
    difference, squares = squared_error(weight, values, scales)
    torch.testing.assert_close(
        difference, float((back.double() - weight.double()).square().sum()), rtol=1e-5, atol=1e-12
    )
    torch.testing.assert_close(squares, float(weight.double().square().sum()), rtol=1e-5, atol=1e-12)
