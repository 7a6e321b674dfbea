"""Soft token merging: its arithmetic, who sees whom, what is there when it is off, and that it trains."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import MODEL, YARN_MODEL, config

from r1train.config.schema_model import TokenMergingConfig

WINDOW, LENGTH = 4, 18  # the last window is not full
MIDDLE = TokenMergingConfig(first_layer=2, last_layer=2, window=WINDOW)
ALL = TokenMergingConfig(first_layer=1, last_layer=3, window=WINDOW)
TOKENS = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def build(device, merging, model=MODEL):
    from r1train.model.build import build_model

    made = build_model(config("single", model=replace(model, token_merging=merging)), device)
    made.eval()
    return made


def hidden_of(model, tokens=None, embedded=None):
    """Last hidden states [LENGTH, b, h]."""
    places = torch.arange(LENGTH)[None]
    return model(
        tokens, places, None, decoder_input=embedded, output_processor=lambda hidden_states, **_: hidden_states
    )


def parts(device):
    """Merge and Inflate of hidden size 2 and window 2, on a config that says nothing else."""
    from r1train.model.token_merging import Inflate, Merge

    made = replace(build(device, None).config, hidden_size=2)
    return Merge(made, 2), Inflate(made, 2)


def test_merging_by_hand(device):
    """Equal scores: the mean. Scores of ln 3 and 0: three quarters and one quarter. What is missing counts as 0."""
    merge, _ = parts(device)
    hidden = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 1.0], [3.0, 5.0], [6.0, 8.0]])[:, None]
    torch.testing.assert_close(merge(hidden)[:, 0], torch.tensor([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]))
    # The root mean square of [2, 0] is sqrt 2, so the first token's score is sqrt 2 times the weight, the second's 0.
    merge.weight.data = torch.tensor([[math.log(3) / math.sqrt(2), 0.0]])
    torch.testing.assert_close(merge(hidden)[0, 0], torch.tensor([1.5, 1.0]), atol=1e-5, rtol=1e-5)


def test_inflation_by_hand(device):
    """Windows of two, five tokens: nothing for the first, then the last complete window's, times the gate."""
    _, inflate = parts(device)
    inflate.weight.data = torch.tensor([1.0, 10.0])
    tokens = torch.arange(5.0)[:, None, None].expand(5, 1, 2)
    added = torch.tensor([0.5, 0.25, 7.0])[:, None, None].expand(3, 1, 2)
    found = inflate(tokens, added)[:, 0]
    assert found.tolist() == [[0.0, 0.0], [1.5, 6.0], [2.5, 7.0], [3.25, 5.5], [4.25, 6.5]]


def test_windows_that_the_router_does_not_count():
    from r1train.model.token_merging import merged_padding

    hidden = torch.zeros(6, 1, 2)
    assert merged_padding(None, hidden, 3) is None
    assert merged_padding(None, hidden, 4).tolist() == [[False, True]]
    padding = torch.tensor([[False, False, False, True, False, True]])
    assert merged_padding(padding, hidden, 2).tolist() == [[False, True, True]]


def test_off_is_the_model_without_it(device):
    """The very same block is built; a merged model has two tensors more, and shares the values of all others."""
    from megatron.core.transformer.transformer_layer import TransformerLayer

    from r1train.model.token_merging import MergedLayer, with_merging

    off, on = build(device, None), build(device, MIDDLE)
    block = object()
    assert with_merging(block, None) is block
    assert not any(isinstance(layer, MergedLayer) for layer in off.decoder.layers)
    assert all(isinstance(layer, TransformerLayer) for layer in off.decoder.layers)
    more = {"decoder.layers.1.merge.weight", "decoder.layers.1.inflate.weight"}
    assert set(on.state_dict()) - set(off.state_dict()) == more and set(off.state_dict()) <= set(on.state_dict())
    assert set(on.sharded_state_dict()) - set(off.sharded_state_dict()) == more
    values = dict(on.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in off.named_parameters())
    assert torch.equal(values["decoder.layers.1.inflate.weight"], torch.ones(64))
    with torch.no_grad():
        assert torch.equal(hidden_of(off, TOKENS), hidden_of(build(device, None), TOKENS))
        assert not torch.allclose(hidden_of(on, TOKENS), hidden_of(off, TOKENS))


def test_a_closed_gate_leaves_the_layers_out(device):
    """Bit for bit the model whose layer is not there."""
    on, off = build(device, MIDDLE), build(device, None)
    on.decoder.layers[1].inflate.weight.data.zero_()
    del off.decoder.layers[1]
    with torch.no_grad():
        assert torch.equal(hidden_of(on, TOKENS), hidden_of(off, TOKENS))


@pytest.mark.parametrize("merging", [MIDDLE, ALL, TokenMergingConfig(first_layer=2, last_layer=3, window=5)])
@pytest.mark.parametrize("dense_layers", [1, 3])
def test_no_token_reaches_an_earlier_one(device, merging, dense_layers):
    """Another token at t: hidden states before t stay, the one at t moves.

    Bit for bit without experts; with them as far as products of other sizes round, for the experts' batches change.
    """
    model = build(device, merging, replace(MODEL, num_dense_layers=dense_layers))
    tolerance = 0.0 if dense_layers == 3 else 2e-6
    with torch.no_grad():
        before = hidden_of(model, TOKENS)
        for t in range(LENGTH):
            changed = TOKENS.clone()
            changed[:, t] = (changed[:, t] + 7) % 64
            after = hidden_of(model, changed)
            torch.testing.assert_close(after[:t], before[:t], atol=tolerance, rtol=tolerance)
            assert (after[t] - before[t]).abs().max() > 0.01, t


def test_gradients_come_from_complete_windows_alone(device):
    """All layers merged: a token is reached by itself, and by every token of the windows that are complete at it."""
    model = build(device, ALL)
    embedded = model.embedding(input_ids=TOKENS[:1], position_ids=torch.arange(LENGTH)[None]).detach().requires_grad_()
    out = hidden_of(model, embedded=embedded)
    rows = [torch.autograd.grad(row.sum(), embedded, retain_graph=True)[0].abs().sum((1, 2)) for row in out]
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    assert torch.equal(torch.stack(rows) > 0, (i == j) | (j < (i + 1) // WINDOW * WINDOW))


def test_positions_are_those_of_the_windows_last_tokens(device):
    model = build(device, MIDDLE, YARN_MODEL)
    merged, plain = (model.decoder.layers[layer].self_attention.rotary_pos_emb for layer in (1, 0))
    angles, scale = merged(5)
    every, expected_scale = plain(20)
    assert torch.equal(angles, every[[3, 7, 11, 15, 19]]) and scale == expected_scale
    cos, sin = merged.get_cached_cos_sin(5, dtype=torch.float32)
    torch.testing.assert_close((cos, sin), (angles.cos() * scale, angles.sin() * scale))


def test_it_trains_with_its_own_weights(device):
    """Twenty steps on one batch, MTP included: the loss halves, and scores and gate have moved."""
    model = build(device, MIDDLE)
    model.train()
    layer = model.decoder.layers[1]
    before = [layer.merge.weight.detach().clone(), layer.inflate.weight.detach().clone()]
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels, places = TOKENS.roll(-1, dims=1), torch.arange(LENGTH).expand(2, -1)
    losses = []
    for _ in range(20):
        loss = model(TOKENS, places, None, labels=labels, loss_mask=torch.ones(2, LENGTH)).mean()
        adam.zero_grad()
        loss.backward()
        if not losses:
            assert layer.merge.weight.grad.abs().max() > 0 and layer.inflate.weight.grad.abs().max() > 0
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert not torch.equal(layer.merge.weight, before[0]) and not torch.equal(layer.inflate.weight, before[1])
