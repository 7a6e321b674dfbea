"""Held-out loss of a real model against cross entropies from its logits, token by token."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import config, windows

from r1train.data.heldout import Windows


def test_measure_is_the_mean_cross_entropy_of_the_counted_tokens(device):
    """Three windows in micro-batches of two, the last one partly padding: 8 + 8 + 3 tokens count."""
    from r1train.eval.perplexity import measure
    from r1train.model.build import build_model

    model = build_model(config("single"), device)
    tokens = windows(3, seq_length=8, seed=3)
    mask = torch.ones(3, 8)
    mask[2, 3:] = 0
    trainer = SimpleNamespace(cfg=config("single"), modules=[model], chunks=[model], device=device)
    found = measure(trainer, Windows(tokens, mask), micro_batch_size=2)
    model.eval()
    losses = []
    with torch.no_grad():
        for row in range(3):
            logits = model(
                tokens[row : row + 1, :-1],
                torch.arange(8)[None],
                None,
                output_processor=lambda hidden_states, output_layer, context: output_layer(hidden_states)[0][:, 0],
            )
            every = torch.nn.functional.cross_entropy(logits, tokens[row, 1:], reduction="none")
            losses += every[: int(mask[row].sum())].tolist()
    assert found.tokens == len(losses) == 19
    assert found.loss == pytest.approx(math.fsum(losses) / 19, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
