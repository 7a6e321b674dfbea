"""Generation over the latent cache against a plain loop that runs the training forward anew for every token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import DENSE, MOONLIGHT, V2_LITE
from tiny import YARN_MODEL, Tokens, config, prompts, set_expert_bias

from r1train.rollout.engine import SamplingParams
from r1train.rollout.sampling import choose_tokens, sample_noise

PARAMS = SamplingParams(samples_per_prompt=2, temperature=0.9, top_p=0.9, max_response_tokens=16, seed=1, name="loop")
MODELS = {
    "yarn": YARN_MODEL,
    "plain_rope": replace(YARN_MODEL, yarn=None),
    "plain_query": replace(YARN_MODEL, q_lora_rank=None),
    "v2_lite": V2_LITE,
    "moonlight": MOONLIGHT,
    **DENSE,
}

# Times which the head's row of eos makes it likely enough.
EOS = {"llama": 20.0, "qwen": 40.0}


def last_logits(model, ids: list[int]) -> torch.Tensor:
    """Logits [1, V] of the token after `ids`, from the training forward."""
    tokens = torch.tensor([ids])
    return model(
        tokens,
        torch.arange(len(ids))[None],
        None,
        output_processor=lambda hidden_states, output_layer, context: output_layer(hidden_states)[0][-1],
    )


def plain_loop(model, prompt, index: int) -> tuple[list[int], list[float]]:
    budget = PARAMS.max_response_tokens
    noise = sample_noise(PARAMS.seed, PARAMS.name, prompt_id=prompt.id, index=index, count=budget)
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < budget and (not tokens or tokens[-1] != Tokens.eos_id):
        logits = last_logits(model, [*prompt.token_ids, *tokens])
        drawn = torch.tensor([noise[len(tokens)]])
        token, logprob = choose_tokens(logits, drawn, temperature=PARAMS.temperature, top_p=PARAMS.top_p)
        tokens.append(token.item())
        logprobs.append(logprob.item())
    return tokens, logprobs


@pytest.fixture(params=MODELS)
def model(device, request):
    """Built with eos made likely, so that samples of one batch end at different steps and leave it."""
    from r1train.model.build import build_model

    made = build_model(config("single", model=MODELS[request.param]), device)
    set_expert_bias(made)
    with torch.no_grad():
        head = made.output_layer.weight
        (made.embedding.word_embeddings.weight if head is None else head)[Tokens.eos_id] *= EOS.get(request.param, 2.5)
    return made


@torch.no_grad()
def test_engine_equals_the_plain_loop(model):
    from r1train.rollout.native import NativeEngine

    groups = NativeEngine(model, Tokens(), batch_size=32).generate(prompts(), PARAMS, policy_version=0)
    lengths = []
    for prompt, group in zip(prompts(), groups, strict=True):
        for sample in group.samples:
            tokens, logprobs = plain_loop(model, prompt, sample.index)
            assert sample.tokens.tolist() == tokens
            np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-5, rtol=0)
            lengths.append(len(tokens))
    # The batch shrank at least twice while it ran: half ended, then half of the rest.
    assert sorted(lengths)[len(lengths) // 2] < 16 and len(set(lengths)) > 3, lengths


@torch.no_grad()
def test_cache_holds_latent_and_rope_key_only(device):
    """Per token and layer kv_lora_rank + qk_rope_head_dim = 16 + 8 values, and not the heads' 4 x (16 + 12)."""
    entries = filled_cache(device, YARN_MODEL)
    assert entries.shape == (3, 2, 10, 24)
    assert entries[:, :, :7].ne(0).all() and entries[:, :, 7:].eq(0).all()
    # The latent is normalised (weights are 1): its mean square is 1. The key is a rotation, so it is not.
    assert entries[:, :, :7, :16].square().mean(-1).allclose(torch.ones(3, 2, 7), atol=1e-3)


@torch.no_grad()
def test_cache_of_a_dense_model_holds_its_key_value_heads(device):
    """Per token and layer 2 x 2 key-value heads x 16, and not 2 x 6 heads x 16."""
    entries = filled_cache(device, DENSE["llama"])
    assert entries.shape == (3, 2, 10, 64)
    assert entries[:, :, :7].ne(0).all() and entries[:, :, 7:].eq(0).all()


def filled_cache(device, model) -> torch.Tensor:
    """Entries after seven tokens of two sequences, with room for ten."""
    from r1train.model.build import build_model
    from r1train.model.decode import empty_cache, rotation_table, stage_forward
    from r1train.model.decode_slots import Slots

    made = build_model(config("single", model=model), device)
    cache = empty_cache(made, sequences=2, capacity=10, device=torch.device("cpu"))
    positions = torch.arange(7).expand(2, -1)
    slots = Slots.at(positions, rotation_table(made, 10), visible=7)
    stage_forward(made, torch.randint(0, 64, (2, 7)), cache=cache, slots=slots)
    return cache.entries
