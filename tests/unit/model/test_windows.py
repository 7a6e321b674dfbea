"""Attention windows: who sees whom, in training, in packed rows, and in decoding."""

from dataclasses import replace

import pytest
import torch
from tiny import MODEL, YARN_MODEL, config

WINDOWS = (3, None, 5)
LENGTH = 16


def build(device, windows, model=MODEL):
    from r1train.model.build import build_model

    made = build_model(config("single", model=replace(model, attention_windows=windows)), device)
    made.eval()
    return made


def core(device, window):
    """CoreAttention of a layer with this window, without weights."""
    from r1train.model.attention import CoreAttention, windowed

    made = build(device, None)
    kind = CoreAttention if window is None else windowed(CoreAttention, window)
    return kind(made.config, softmax_scale=0.5)


@pytest.mark.parametrize("window", [1, 3, LENGTH - 1, LENGTH, 100])
def test_core_is_softmax_over_the_window(device, window):
    """Against an explicit softmax in which token i weighs tokens max(0, i - window + 1) to i."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(LENGTH, 2, 3, width, generator=generator) for width in (8, 8, 6))
    found = core(device, window)(query, key, value, None).view(LENGTH, 2, 3, 6)
    for i in range(LENGTH):
        seen = slice(max(0, i - window + 1), i + 1)
        weights = torch.einsum("bnd,tbnd->bnt", query[i], key[seen]).mul(0.5).softmax(-1)
        torch.testing.assert_close(found[i], torch.einsum("bnt,tbne->bne", weights, value[seen]))


def test_packed_segments_have_windows_of_their_own(device):
    """Segments of 9 and 7 tokens: each as if it stood alone, and token 9 sees nothing of the first."""
    from megatron.core.packed_seq_params import PackedSeqParams

    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(LENGTH, 3, 8, generator=generator) for _ in range(3))
    bounds = torch.tensor([0, 9, 16], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    attend = core(device, 4)
    found = attend(query, key, value, None, packed_seq_params=packed)
    for start, end in ((0, 9), (9, 16)):
        alone = attend(*(x[start:end, None] for x in (query, key, value)), None)
        torch.testing.assert_close(found[start:end].flatten(1), alone[:, 0])


def influence(model, tokens: torch.Tensor) -> torch.Tensor:
    """bool [LENGTH, LENGTH]: whether the embedding of token j moves the last hidden state of token i."""
    hidden = model.embedding(input_ids=tokens, position_ids=torch.arange(LENGTH)[None]).detach().requires_grad_()
    out = model(
        None,
        None,
        None,
        decoder_input=hidden,
        output_processor=lambda hidden_states, output_layer, context: hidden_states,
    )
    rows = [torch.autograd.grad(out[i].sum(), hidden, retain_graph=True)[0].abs().sum((1, 2)) for i in range(LENGTH)]
    return torch.stack(rows) > 0


def test_gradients_reach_as_far_as_the_windows_add_up(device):
    """Windows of 2, 3 and 2 tokens: a token is reached from 1 + 2 + 1 tokens further on, and from no others."""
    tokens = torch.arange(LENGTH)[None] + 3
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    reached = influence(build(device, (2, 3, 2)), tokens)
    assert torch.equal(reached, (j <= i) & (i - j <= 4))
    assert torch.equal(influence(build(device, (2, None, 2)), tokens), j <= i)


def test_all_null_is_no_window(device):
    from r1train.model.attention import CoreAttention, window_of

    with_nulls, without = build(device, (None, None, None)), build(device, None)
    assert all(type(block.self_attention.core_attention) is CoreAttention for block in with_nulls.decoder.layers)
    cores = [block.self_attention.core_attention for block in build(device, WINDOWS).decoder.layers]
    assert [window_of(one) for one in cores] == list(WINDOWS)
    assert without.config.window_size is None


@pytest.mark.parametrize("prefill", [1, 4, LENGTH])
def test_decoding_is_the_training_forward(device, prefill):
    """Logits of every position: a prefill of some tokens, then one by one, against one forward without a cache."""
    from r1train.model.decode import empty_cache, rotation_table, stage_forward
    from r1train.model.decode_slots import Slots

    model = build(device, WINDOWS, YARN_MODEL)
    tokens = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(4))
    places = torch.arange(LENGTH).expand(2, -1)
    with torch.no_grad():
        whole = model(tokens, places, None, output_processor=lambda hidden_states, **_: hidden_states)
        cache = empty_cache(model, sequences=2, capacity=LENGTH, device=device.torch_device)
        rotation, parts = rotation_table(model, LENGTH), []
        for start, end in [(0, prefill), *((i, i + 1) for i in range(prefill, LENGTH))]:
            slots = Slots.at(places[:, start:end], rotation, visible=end)
            parts.append(stage_forward(model, tokens[:, start:end], cache=cache, slots=slots))
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
