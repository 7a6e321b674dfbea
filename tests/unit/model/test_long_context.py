"""Prompts and responses as long as the recipes have them, through the engine, by a model of one small layer.

One layer's cache entries depend on nothing but their tokens and places, so the reference computes all of them at once
from the weights, in double precision, per head and not absorbed, and attention for the last few tokens only.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from tiny import MODEL, Tokens, config

from r1train.config.schema_model import YarnConfig
from r1train.data.prompts import Prompt
from r1train.rollout.engine import SamplingParams

CONTEXT = 131072
RESPONSE = 4096
YARN = YarnConfig(factor=40.0, original_max_positions=4096)
SHAPE = replace(
    MODEL,
    hidden_size=32,
    num_layers=1,
    num_dense_layers=1,
    ffn_hidden_size=32,
    num_attention_heads=1,
    q_lora_rank=None,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=4,
    mtp_depth=0,
    yarn=YARN,
    max_position_embeddings=CONTEXT,
    init_std=0.3,
)
GREEDY = SamplingParams(samples_per_prompt=1, temperature=0.0, top_p=1.0, max_response_tokens=5, seed=1, name="long")


def build(device):
    from r1train.model.build import build_model

    model = build_model(config("single", model=SHAPE), device)
    return model.eval()


def yarn_frequencies() -> torch.Tensor:
    """Of the pairs, double [r / 2]; YaRN (2309.00071) section 3.2 with beta 32 and 1, as DeepSeek's published code."""
    width, base = SHAPE.qk_rope_head_dim, SHAPE.rope_base
    plain = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)

    def pair_that_turns(times: float) -> float:
        return width * math.log(YARN.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair_that_turns(32.0)), 0), min(math.ceil(pair_that_turns(1.0)), width - 1)
    stretched = ((torch.arange(width // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return plain / YARN.factor * stretched + plain * (1 - stretched)


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbours of x [t, r] as complex numbers, turned by their positions: complex [t, r / 2]."""
    angles = positions.double()[:, None] * yarn_frequencies()
    return torch.view_as_complex(x.reshape(len(x), -1, 2)) * torch.polar(torch.ones_like(angles), angles)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + SHAPE.rms_norm_eps).rsqrt() * weight


def reference(model, tokens: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [count, V] after the last `count` tokens, and the cache entries [t, c + r] of all; double."""
    block, weights = model.decoder.layers[0], {name: one.double() for name, one in model.named_parameters()}
    attention = "decoder.layers.0.self_attention."
    embedded = weights["embedding.word_embeddings.weight"][tokens]
    inputs, places = normed(embedded, block.input_layernorm.weight.double()), torch.arange(len(tokens))
    nope, width = SHAPE.qk_nope_head_dim, SHAPE.kv_lora_rank
    down = inputs @ weights[attention + "linear_kv_down_proj.weight"].T
    latents = normed(down[:, :width], block.self_attention.kv_layernorm.weight.double())
    keys_values = latents @ weights[attention + "linear_kv_up_proj.weight"].T
    query = inputs[-count:] @ weights[attention + "linear_q_proj.weight"].T
    turned_key, turned_query = rotated(down[:, width:], places), rotated(query[:, nope:], places[-count:])
    scores = query[:, :nope] @ keys_values[:, :nope].T + (turned_query @ turned_key.conj().T).real
    scale = (0.1 * math.log(YARN.factor) + 1) ** 2 / math.sqrt(nope + SHAPE.qk_rope_head_dim)
    hidden_from = places[None] > places[-count:, None]
    mixed = (scores * scale).masked_fill(hidden_from, -math.inf).softmax(-1) @ keys_values[:, nope:]
    hidden = embedded[-count:] + mixed @ weights[attention + "linear_proj.weight"].T
    gate, up = (normed(hidden, block.pre_mlp_layernorm.weight.double()) @ block.mlp.linear_fc1.weight.double().T).chunk(
        2, dim=-1
    )
    hidden = hidden + (torch.nn.functional.silu(gate) * up) @ block.mlp.linear_fc2.weight.double().T
    last = normed(hidden, model.decoder.final_layernorm.weight.double())
    entries = torch.cat([latents, turned_key.real, turned_key.imag], dim=-1)
    return (last @ weights["output_layer.weight"].T).log_softmax(-1), entries


def engine_of(model, tokenizer: Tokens):
    """An engine, and the caches that its samples ended with."""
    from r1train.rollout.native import NativeEngine

    engine, caches = NativeEngine(model, tokenizer, batch_size=2, check_every=8), []
    real = engine.steps.run

    def run(live, params, count) -> None:
        real(live, params, count)
        caches[:] = [live.cache]

    engine.steps.run = run
    return engine, caches


def close_entries(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Angles are float32 as in training: 131,071 radians are known to 0.004, a place further on is 1 radian away."""
    latent = SHAPE.kv_lora_rank
    torch.testing.assert_close(found[:, :latent].double(), expected[:, :latent], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, latent:].double(), expected[:, latent:], atol=4e-3, rtol=1e-3)


@torch.no_grad()
def test_a_prompt_that_fills_the_context(device, monkeypatch):
    """131,067 tokens and a response of 5: every cache entry, and the log-probability of every token of the vocabulary.

    Pieces before the last 1,000 tokens see slot 0 only: what they compute is not used, what they write does not
    depend on it, and the test takes seconds instead of minutes.
    """
    from r1train.rollout import prefill, steps

    model = build(device)
    prompt = Prompt("long", "t", "?", "!", {}, (0, *torch.randint(3, 64, (CONTEXT - 6,)).tolist()))
    real, pieces = steps.stage_forward, []

    def sparing(model, inputs, *, slots, **rest):
        pieces.append(inputs.shape[1])
        short = slots.visible < len(prompt.token_ids) - 1000
        return real(model, inputs, slots=replace(slots, visible=1) if short else slots, **rest)

    monkeypatch.setattr(steps, "stage_forward", sparing)
    monkeypatch.setattr(prefill, "SCORE_BYTES", 256 << 20)
    engine, caches = engine_of(model, Tokens())
    (group,) = engine.generate([prompt], GREEDY, policy_version=0)
    (sample,) = group.samples
    tokens = torch.tensor([*prompt.token_ids, *sample.tokens.tolist()])
    logprobs, expected = reference(model, tokens[:-1], 5)
    assert len(sample.tokens) == 5 and len(tokens) == CONTEXT
    # Eight steps until somebody looks whether samples have ended, the last of them beyond the context.
    assert sum(pieces) == len(prompt.token_ids) + 8
    close_entries(caches[0].entries[0, 0, : CONTEXT - 1], expected)
    assert sample.tokens.tolist() == logprobs.argmax(-1).tolist()
    np.testing.assert_allclose(sample.logprobs, logprobs.amax(-1), atol=2e-4, rtol=0)


class Endless(Tokens):
    """No token ends a response."""

    eos_id = -1


@torch.no_grad()
def test_a_response_of_thousands_of_tokens(device):
    """Every token's cache entry, and the logprobs of the last 64, drawn where the cache has grown many times.

    RESPONSE = 32768 passes, too, and takes a minute.
    """
    model = build(device)
    engine, caches = engine_of(model, Endless())
    prompt = Prompt("short", "t", "?", "!", {}, (0, 9, 17, 30))
    params = replace(GREEDY, temperature=1.0, max_response_tokens=RESPONSE)
    (group,) = engine.generate([prompt], params, policy_version=0)
    (sample,) = group.samples
    tokens = torch.tensor([*prompt.token_ids, *sample.tokens.tolist()])
    logprobs, expected = reference(model, tokens[:-1], 64)
    assert (len(sample.tokens), sample.finish) == (RESPONSE, "length")
    close_entries(caches[0].entries[0, 0, : len(tokens) - 1], expected)
    drawn = logprobs.gather(1, tokens[-64:, None])[:, 0]
    np.testing.assert_allclose(sample.logprobs[-64:], drawn, atol=2e-4, rtol=0)
