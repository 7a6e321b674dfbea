"""Share of repeated n-grams, by hand."""

import pytest

from r1train.reward.repetition import repetition


@pytest.mark.parametrize(
    ("text", "size", "value"),
    [
        ("", 2, 0.0),
        ("a b", 2, 0.0),
        ("a b c d", 2, 0.0),
        ("a b a b a b", 2, 0.6),  # ab ba ab ba ab: 2 of 5
        ("no no no no", 1, 0.75),
        ("3+4=7 3+4=7", 5, 1 / 6),  # ten words, six 5-grams, the first and the last equal
        ("\u6211\u4eec\u6211\u4eec", 2, 1 / 3),
    ],
)
def test_hand_counts(text, size, value):
    assert repetition(text, size=size) == pytest.approx(value, abs=1e-12)
