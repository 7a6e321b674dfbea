"""Near copies by overlap of word 5-grams, with the overlap counted by hand."""

from r1train.data.near_duplicate import NearDuplicates

TEXT = "one two three four five six seven eight nine ten"  # 6 five-grams
ONE_CHANGED = "one two three four five six seven eight nine eleven"  # 5 of 7 in common: 0.714


def test_share_decides():
    strict, loose = NearDuplicates(0.72), NearDuplicates(0.71)
    assert strict.add(TEXT) and strict.add(ONE_CHANGED)
    assert loose.add(TEXT) and not loose.add(ONE_CHANGED)


def test_copies_and_case():
    seen = NearDuplicates(1.0)
    assert seen.add(TEXT)
    assert not seen.add(TEXT.upper().replace(" ", ", "))
    assert seen.add("short one") and not seen.add("Short one!") and seen.add("short two")


def test_a_dropped_text_is_not_compared():
    seen = NearDuplicates(0.6)
    assert seen.add(TEXT) and not seen.add(ONE_CHANGED)
    # 4 of 8 five-grams in common with the kept text, 5 of 7 with the dropped one.
    assert seen.add("two three four five six seven eight nine eleven twelve")
