"""Mixing two kinds of data: so many rows of the second that they make the wanted share of the whole."""

from fractions import Fraction

from r1train.data.order import epoch_order
from r1train.data.prompts import Prompt, PromptSet


def rows_for_share(count: int, share: float) -> int:
    """Rows to add to `count` rows so that they make `share` of the sum (R1: 200k to 600k for 0.25); share below 1."""
    exact = Fraction(str(share))
    return round(count * exact / (1 - exact))


def mixed_rows(rows: list[dict], wanted: int, *, seed: int) -> list[dict]:
    """`wanted` of the rows, at random but always the same, in their own order; all where there are no more."""
    if wanted >= len(rows):
        return rows
    chosen = epoch_order(len(rows), seed=seed, epoch=0, stream="mix")[:wanted]
    return [rows[index] for index in sorted(chosen.tolist())]


class PromptMix:
    """The prompts of RL: one set, and from a later step on a share of a second one.

    Which set and which of its prompts stand at a position is a pure function of position and `late`: the first set goes
    on where it was, the second begins.
    """

    def __init__(self, prompts: PromptSet, late: PromptSet | None = None, *, share: float = 0.0):
        self._prompts, self._late, self._share = prompts, late, Fraction(str(share))

    @property
    def tasks(self) -> set[str]:
        """Names of all tasks of both sets."""
        return {prompt.task for one in (self._prompts, self._late) if one is not None for prompt in one.prompts}

    def take(self, position: int, count: int, *, late: int | None) -> list[Prompt]:
        """Prompts [position, position + count).

        late: the position from which on the second set has its share among them, evenly spread; None: not yet.
        """
        if late is None or self._late is None:
            return self._prompts.take(position, count)
        assert position >= late, (position, late)
        return [self._mixed(self._late, late, index - late) for index in range(position, position + count)]

    def _mixed(self, second: PromptSet, late: int, index: int) -> Prompt:
        """index: prompts since the second set joined, at position `late`."""
        before, after = int(index * self._share), int((index + 1) * self._share)
        if after > before:
            return second.take(before, 1)[0]
        return self._prompts.take(late + index - before, 1)[0]
