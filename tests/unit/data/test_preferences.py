"""What a reward model reads: the summary, bad rows, the held-out split, and pairs side by side in packed rows."""

import json

import numpy as np
import pytest
import torch

from r1train.config.load import load_config
from r1train.data.preferences import Room, pack_examples, read_preferences, scored_text, take_examples
from r1train.data.roles import ChatFrame
from r1train.errors import DataError
from r1train.reward.reward_model import area_under_curve, pair_accuracy, pairwise_loss, pointwise_loss


class Letters:
    """One id per character; tags are plain text here."""

    bos_id, eos_id, pad_id = range(3)
    chat = ChatFrame(before=(bos_id, 3), after=(4,))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [5 + ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("response", "summary"),
    [
        ("<think>a</think> <answer>b</answer>", "<answer>b</answer>"),
        ("<think>a</think>b</think>c", "c"),
        ("<think>never ends", ""),
        (" no thinking ", "no thinking"),
    ],
)
def test_summary(response, summary):
    assert scored_text(response, "summary") == summary
    assert scored_text(response, "response") == response


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(number: int, **changes) -> dict:
    row = {"id": str(number), "prompt": f"q{number}", "chosen": "<think>a</think>yes", "rejected": "<think>a</think>no"}
    return {**row, **changes}


def read(path, **changes):
    defaults = {"pairwise": True, "scored": "summary", "heldout_share": 0.5, "room": Room(64)}
    return read_preferences(path, Letters(), **{**defaults, **changes})


def test_split_is_by_prompt(tmp_path):
    rows = [pair(number, prompt=f"q{number % 40}") for number in range(80)]
    found = read(write(tmp_path / "p", rows))
    prompts = [
        {bytes(one.samples[0].tokens[2:5].astype(np.uint8)) for one in side} for side in (found.train, found.heldout)
    ]
    assert len(found.train) + len(found.heldout) == 80 and not prompts[0] & prompts[1]
    assert read(tmp_path / "p").heldout[0].id == found.heldout[0].id


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pair(1), pair(1)], "1 ids occur more than once"),
        ([pair(1), pair(2, rejected="<think>b</think>yes")], "1 rows .2.: the two summary texts are equal"),
        ([pair(1, chosen="")], "field 'chosen' is empty"),
        ([{"id": "1", "prompt": "q", "chosen": "x"}], "field 'rejected' is missing"),
        ([pair(1)], "0 examples to train on and 1 held out|1 examples to train on and 0 held out"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "p", rows))


def test_bad_label(tmp_path):
    rows = [{"id": str(n), "prompt": f"q{n}", "response": "x", "label": n} for n in range(3)]
    with pytest.raises(DataError, match="1 rows .2.: label is neither 0 nor 1"):
        read(write(tmp_path / "p", rows), pairwise=False)


def test_long_examples_are_named_before_anything_is_trained(tmp_path):
    """A sample has 6 tokens around its text: yes and no make 9 + 8, the two of row 3 24 together."""
    rows = [pair(1), pair(2), pair(3, chosen="y" * 10), pair(4, chosen="y" * 9)]
    path = write(tmp_path / "p", rows)
    assert sum(map(len, vars(read(path, room=Room(24))).values())) == 4
    with pytest.raises(
        DataError, match=r"p: 1 of 4 examples have .* 23 in a row .*:\n  - 3: 16 and 8 tokens\nFix: rem"
    ):
        read(path, room=Room(23))
    with pytest.raises(
        DataError, match=r"2 of 4 .* 14 of one prompt.*\n  - 3: 16 and 8 tokens\n  - 4: 15 and 8 tokens"
    ):
        read(path, room=Room(64, sample=14))
    rows = [{"id": str(n), "prompt": f"q{n}", "response": "x" * n, "label": n % 2} for n in range(1, 9)]
    with pytest.raises(DataError, match=r"1 of 8 examples .*\n  - 8: 14 tokens"):
        read(write(tmp_path / "labels", rows), pairwise=False, room=Room(13))


def test_two_responses_of_the_papers_length_share_a_row():
    """R1 section 2.2.2: 8,192 tokens."""
    overrides = ["experiment=tiny", "stage=reward_model", "stage.init_from=x", "stage.dataset=x", "stage.steps=2"]
    stage = load_config(overrides, check_files=False).stage
    assert (stage.max_sample_tokens, stage.seq_length) == (8192, 2 * 8192)


def test_rows_hold_whole_pairs(tmp_path):
    examples = read(write(tmp_path / "p", [pair(number) for number in range(40)]), heldout_share=0.0).train
    assert take_examples(examples, 0, 40, seed=1) != take_examples(examples, 40, 40, seed=1)
    rows = pack_examples(examples[:7], seq_length=64, pad_id=2)
    seen = 0
    for row in rows:
        bounds = row.cu_seqlens.tolist()
        texts = [row.tokens[start:end].tolist() for start, end in zip(bounds, bounds[1:], strict=False)]
        real = [text for text in texts if text[0] == Letters.bos_id]
        endings = ["".join(chr(token - 5) for token in text[text.index(4) + 1 : -1]) for text in real]
        assert endings == ["yes", "no"] * (len(real) // 2)
        seen += len(real) // 2
    assert seen == 7
    with pytest.raises(DataError, match="longer than 10 tokens"):
        pack_examples(examples[:1], seq_length=10, pad_id=2)


def test_losses_by_hand():
    found = pairwise_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert found.loss_sum.item() == pytest.approx(0.313262 + 2.126928, abs=1e-5)
    assert (int(found.num_tokens), found.logs["pair_accuracy"].item(), found.logs["margin"].item()) == (2, 1.0, -1.0)
    found = pointwise_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]))
    assert found.loss_sum.item() == pytest.approx(0.126928 + 1.313262, abs=1e-5)
    assert found.logs["label_accuracy"].item() == 1.0


def test_metrics_by_hand():
    assert pair_accuracy([1.0, 2.0, 0.0, 3.0], [0.0, 2.0, 1.0, 1.0]) == (1 + 0.5 + 0 + 1) / 4
    assert area_under_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert area_under_curve([1.0, 1.0], [0, 1]) == 0.5
    assert area_under_curve([1.0, 2.0], [1, 1]) is None
