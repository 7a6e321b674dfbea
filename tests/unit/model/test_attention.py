"""Core attention and RMSNorm against arithmetic in float64 and by hand."""

from types import SimpleNamespace

import pytest
import torch

SCALE = 0.37


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One sequence, float64: [s, n, d], [s, n, d], [s, n, e] -> [s, n, e]."""
    query, key, value = (x.double() for x in (query, key, value))
    scores = torch.einsum("snd,tnd->nst", query, key) * SCALE
    hidden = torch.triu(torch.ones(scores.shape[1:], dtype=torch.bool), diagonal=1)
    weights = scores.masked_fill(hidden, float("-inf")).exp()
    return torch.einsum("nst,tne->sne", weights / weights.sum(-1, keepdim=True), value)


def tensors(*lead: int) -> tuple[torch.Tensor, ...]:
    """query, key of width 24 and value of width 16, three heads, with gradients."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*lead, 3, width, generator=generator).requires_grad_() for width in (24, 24, 16))


@pytest.fixture
def attention(device):
    from r1train.model.attention import CoreAttention

    everything = SimpleNamespace(window_size=None)
    return CoreAttention(config=everything, softmax_scale=SCALE, layer_number=1, attn_mask_type=None)


def test_dense_equals_naive_float64_softmax(attention):
    query, key, value = tensors(7, 2)
    out = attention(query, key, value, None)
    assert out.shape == (7, 2, 48)
    for row in range(2):
        expected = naive(query[:, row], key[:, row], value[:, row]).flatten(1)
        torch.testing.assert_close(out[:, row].double(), expected, atol=1e-6, rtol=1e-5)


def test_packed_equals_each_sequence_alone(attention):
    lengths = [4, 1, 6]
    query, key, value = tensors(11)
    bounds = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    out = attention(query, key, value, None, packed_seq_params=SimpleNamespace(cu_seqlens_q=bounds))
    parts = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
    expected = torch.cat([naive(*part).flatten(1) for part in parts])
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)

    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((out * weights).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)


def test_rms_norm_by_hand(device):
    """mean(x^2) = (4 + 4 + 1 + 1) / 4 = 2.5; 2 / sqrt(2.5) = 1.2649, 1 / sqrt(2.5) = 0.6325."""
    from r1train.model.norm import RMSNorm

    config = SimpleNamespace(params_dtype=torch.float32, sequence_parallel=True)
    norm = RMSNorm(config, 4, eps=1e-6)
    out = norm(torch.tensor([2.0, -2.0, 1.0, 1.0]))
    torch.testing.assert_close(out, torch.tensor([1.264911, -1.264911, 0.632455, 0.632455]), atol=1e-6, rtol=0)
    assert norm.weight.sequence_parallel is True
    # With eps 1.5 the divisor is sqrt(2.5 + 1.5) = 2.
    assert RMSNorm(config, 4, eps=1.5)(torch.tensor([2.0, -2.0, 1.0, 1.0])).tolist() == [1.0, -1.0, 0.5, 0.5]
