"""Held-out perplexity: the corpora's mean by hand."""

import math

import pytest

from r1train.eval.perplexity import CorpusPerplexity, weighted_loss


def corpus(loss: float) -> CorpusPerplexity:
    return CorpusPerplexity(loss=loss, perplexity=math.exp(loss), tokens=10)


def test_corpora_are_weighted_as_in_training():
    """(0.9 * 1 + 0.05 * 3) / 0.95 = 1.105263: a corpus without held-out documents has no share."""
    found = weighted_loss({"worked": corpus(1.0), "text": corpus(3.0)}, {"worked": 0.9, "text": 0.05, "gsm8k": 0.05})
    assert found == pytest.approx(1.105263, abs=1e-6)
