"""Data of reward models: pairs or labelled responses, what of a response is scored, and packed rows of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from r1train.data.batch import PackedBatch, pack
from r1train.data.chat import Sample, chat_sample
from r1train.data.files import check_unique, read_rows
from r1train.data.order import epoch_order
from r1train.data.packing import best_fit
from r1train.data.split import document_draw
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError, first_of

Scored = Literal["summary", "response"]
PAIR_FIELDS: dict[str, type] = {"id": str, "prompt": str, "chosen": str, "rejected": str}
LABEL_FIELDS: dict[str, type] = {"id": str, "prompt": str, "response": str, "label": int}


def scored_text(response: str, scored: Scored) -> str:
    """What a reward model sees: the whole response, or the text after the thinking (R1 section 2.2.2).

    A response whose thinking does not end has an empty summary; one without thinking is all summary.
    """
    if scored == "response":
        return response
    _, closed, after = response.rpartition("</think>")
    return after.strip() if closed else ("" if "<think>" in response else response.strip())


@dataclass(frozen=True)
class Example:
    """One pair (chosen, rejected) or one labelled response, in tokens. label: 1 or 0; 1 for pairs, which have none."""

    id: str
    samples: tuple[Sample, ...]
    label: int = 1

    @property
    def tokens(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)


@dataclass(frozen=True)
class PreferenceSet:
    """Examples to train on and examples held out; no prompt stands in both."""

    train: list[Example]
    heldout: list[Example]


@dataclass(frozen=True)
class Room:
    """row: tokens that an example (a pair's two samples side by side) must fit; sample: so many of one at most."""

    row: int
    sample: int | None = None


def read_preferences(
    path: Path, tokenizer: Tokenizer, *, pairwise: bool, scored: Scored, heldout_share: float, room: Room
) -> PreferenceSet:
    """Rows of a jsonl file: id, prompt, chosen, rejected; or id, prompt, response, label (0 or 1).

    Raises DataError: file missing, empty or malformed, an id twice, a label that is neither 0 nor 1, pairs whose scored
    texts are equal, an example without room, nothing on one side of the split.
    """
    rows = read_rows(path, PAIR_FIELDS if pairwise else LABEL_FIELDS)
    check_unique([row["id"] for row in rows], path)
    train: list[Example] = []
    heldout: list[Example] = []
    wrong: list[str] = []
    for row in rows:
        texts = (row["chosen"], row["rejected"]) if pairwise else (row["response"],)
        texts = tuple(scored_text(text, scored) for text in texts)
        if (pairwise and texts[0] == texts[1]) or (not pairwise and row["label"] not in (0, 1)):
            wrong.append(row["id"])
            continue
        samples = tuple(
            chat_sample(tokenizer, row["prompt"], text, id=f"{row['id']}/{index}") for index, text in enumerate(texts)
        )
        side = heldout if document_draw(row["prompt"], "heldout") < heldout_share else train
        side.append(Example(row["id"], samples, 1 if pairwise else row["label"]))
    if wrong:
        what = f"the two {scored} texts are equal" if pairwise else "label is neither 0 nor 1"
        raise DataError(f"{path}: {len(wrong)} rows ({', '.join(wrong[:3])}): {what}. Fix: remove them")
    _check_room([*train, *heldout], path, room)
    if not train or (heldout_share > 0 and not heldout):
        raise DataError(
            f"{path}: {len(train)} examples to train on and {len(heldout)} held out. "
            "Fix: more rows, or another stage.heldout_share"
        )
    return PreferenceSet(train, heldout)


def _check_room(examples: list[Example], path: Path, room: Room) -> None:
    """All of them, before anything is trained: the order of training would meet a long one in its middle."""
    most = room.row if room.sample is None else room.sample
    long = [
        f"{one.id}: {' and '.join(str(len(sample.tokens)) for sample in one.samples)} tokens"
        for one in examples
        if one.tokens > room.row or any(len(sample.tokens) > most for sample in one.samples)
    ]
    if long:
        limits = f"{room.row} in a row (stage.seq_length), {most} of one prompt and response (stage.max_sample_tokens)"
        raise DataError(
            f"{path}: {len(long)} of {len(examples)} examples have more tokens than {limits}:{first_of(long)}\n"
            "Fix: remove them, or raise the limit"
        )


def take_examples(examples: list[Example], position: int, count: int, *, seed: int) -> list[Example]:
    """Examples [position, position + count) of the endless stream; every epoch has its own order."""
    chosen = []
    for index in range(position, position + count):
        epoch, place = divmod(index, len(examples))
        chosen.append(examples[epoch_order(len(examples), seed=seed, epoch=epoch, stream="preferences")[place]])
    return chosen


def pack_examples(examples: list[Example], *, seq_length: int, pad_id: int) -> list[PackedBatch]:
    """Rows of at most seq_length tokens; the two samples of a pair stand side by side, chosen first.

    The extra `label` is the example's at every token that is trained. Raises DataError for examples that do not fit,
    which read_preferences has looked at.
    """
    bins = best_fit([one.tokens for one in examples], seq_length, names=[one.id for one in examples])
    return [
        pack(
            [_labelled(sample, examples[item].label) for item in one for sample in examples[item].samples],
            seq_length=seq_length,
            pad_id=pad_id,
        )
        for one in bins
    ]


def _labelled(sample: Sample, label: int) -> Sample:
    return Sample(sample.id, sample.tokens, sample.trained, {"label": np.float32(label) * sample.trained})
