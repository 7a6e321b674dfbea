"""Drops texts that say again what an earlier one said: overlap of word n-grams, found through an index of them."""

from collections import Counter, defaultdict

from r1train.data.decontaminate import words

NGRAM_WORDS = 5


class NearDuplicates:
    """Texts seen so far. Two texts are near copies when |A and B| / |A or B| of their word 5-grams reaches the share.

    A text of fewer words counts as one n-gram. Exact copies are always near copies.
    """

    def __init__(self, share: float):
        """share: within (0, 1]; 1 finds texts with the same n-grams only."""
        self._share = share
        self._sizes: list[int] = []
        self._holders: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, text: str) -> bool:
        """Whether the text is no near copy of an earlier kept one; then it is kept, and later ones are compared."""
        grams = _grams(text)
        shared = Counter(holder for gram in grams for holder in self._holders.get(gram, ()))
        for holder, common in shared.items():
            if common >= self._share * (len(grams) + self._sizes[holder] - common):
                return False
        for gram in grams:
            self._holders[gram].append(len(self._sizes))
        self._sizes.append(len(grams))
        return True


def _grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    if len(found) <= NGRAM_WORDS:
        return {tuple(found)}
    return {tuple(found[at : at + NGRAM_WORDS]) for at in range(len(found) - NGRAM_WORDS + 1)}
