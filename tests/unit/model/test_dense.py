"""Dense models against the Llama formulas written out in float64, from the model's own weights."""

import math

import pytest
import torch
from shapes import DENSE, LLAMA, QWEN
from tiny import config

from r1train.config.schema_model import DenseModelConfig


def angles(model: DenseModelConfig, positions: int) -> torch.Tensor:
    """[positions, head_dim / 2]: plain RoPE, slowed below a band of wavelengths as in Llama 3.1."""
    frequencies = []
    for pair in range(model.head_dim // 2):
        frequency = model.rope_base ** (-2 * pair / model.head_dim)
        scaling = model.rope_scaling
        if scaling is not None:
            turns = scaling.original_max_positions * frequency / (2 * math.pi)
            share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            share = min(1.0, max(0.0, share))
            frequency = share * frequency + (1 - share) * frequency / scaling.factor
        frequencies.append(frequency)
    return torch.outer(torch.arange(positions, dtype=torch.float64), torch.tensor(frequencies, dtype=torch.float64))


def rotate(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """x [s, heads, d]: pairs are (i, i + d / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def formula(model: DenseModelConfig, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """One sequence -> logits [s, V]. linear_qkv holds, for every key-value head, its queries, its key, its value."""
    length, groups, eps = len(tokens), model.num_key_value_heads, model.rms_norm_eps
    angle = angles(model, length)
    future = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
    hidden = weights["embedding.word_embeddings.weight"][tokens]
    for layer in range(model.num_layers):
        part = {name.removeprefix(f"decoder.layers.{layer}."): value for name, value in weights.items()}
        x = norm(hidden, part["input_layernorm.weight"], eps)
        mixed = x @ part["self_attention.linear_qkv.weight"].T
        if model.qkv_bias:
            mixed = mixed + part["self_attention.linear_qkv.bias"]
        mixed = mixed.unflatten(-1, (groups, -1, model.head_dim))
        query, key, value = mixed[:, :, :-2].flatten(1, 2), mixed[:, :, -2], mixed[:, :, -1]
        query, key = rotate(query, angle), rotate(key, angle)
        heads = []
        for head in range(model.num_attention_heads):
            group = head * groups // model.num_attention_heads
            scores = query[:, head] @ key[:, group].T / math.sqrt(model.head_dim)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value[:, group])
        hidden = hidden + torch.cat(heads, dim=-1) @ part["self_attention.linear_proj.weight"].T
        x = norm(hidden, part["pre_mlp_layernorm.weight"], eps)
        gate, up = (x @ part["mlp.linear_fc1.weight"].T).chunk(2, dim=-1)
        hidden = hidden + (gate * gate.sigmoid() * up) @ part["mlp.linear_fc2.weight"].T
    head = weights["embedding.word_embeddings.weight" if model.tie_embeddings else "output_layer.weight"]
    return norm(hidden, weights["decoder.final_layernorm.weight"], eps) @ head.T


@pytest.mark.parametrize("name", DENSE)
def test_forward_equals_the_formula(device, name):
    from r1train.model.build import build_model

    model = DENSE[name]
    built = build_model(config("single", model=model), device)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 1:  # norms away from 1, biases away from 0
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(0, 64, (2, 40), generator=generator)
    weights = {key: parameter.detach().double() for key, parameter in built.named_parameters()}
    with torch.no_grad():
        logits = built(tokens, torch.arange(40)[None], None)
    for row in range(2):
        expected = formula(model, weights, tokens[row])
        assert expected.std() > 0.1
        torch.testing.assert_close(logits[row].double(), expected, atol=2e-5, rtol=1e-5)


def test_rope_scaling_changes_what_it_should(device):
    """base 500, width 16, 64 positions: wavelengths 2 pi 500^(i/8); below 16 kept, above 64 eight times as long."""
    from r1train.model.build import build_model

    scaled = build_model(config("single", model=LLAMA), device).rotary_pos_emb.inv_freq
    plain = build_model(config("single", model=QWEN), device).rotary_pos_emb.inv_freq
    assert scaled.shape == plain.shape == (8,)
    ratio = (plain / scaled).tolist()
    assert ratio[:2] == [1.0, 1.0]  # wavelengths 6.3 and 13.7
    assert 1.0 < ratio[2] < ratio[3] < 8.0 or ratio[3] == 8.0  # 29.7 lies in the band
    assert ratio[4:] == [8.0] * 4  # 140 and longer
    torch.testing.assert_close(scaled.double(), angles(LLAMA, 2)[1], atol=1e-8, rtol=1e-6)


def test_tied_head_has_no_weights_of_its_own_and_biases_start_at_zero(device):
    from r1train.model.build import build_model

    parameters = dict(build_model(config("single", model=QWEN), device).named_parameters())
    assert "output_layer.weight" not in parameters
    biases = {name: value for name, value in parameters.items() if name.endswith("bias")}
    assert len(biases) == 3 and all(value.shape == (12 * 16,) and value.eq(0).all() for value in biases.values())
