"""Shares of mixed data: R1's own numbers, and which prompts stand where."""

import json

import pytest

from r1train.data.mix import PromptMix, mixed_rows, rows_for_share
from r1train.data.prompts import PromptSet
from r1train.data.roles import ChatFrame


class Letters:
    """A tokenizer of one id per character."""

    chat = ChatFrame(before=(0, 1), after=(2,))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [3 + ord(letter) % 50 for letter in text]


def prompt_set(path, task: str, count: int) -> PromptSet:
    rows = [
        {"id": f"{task}{n}", "task": task, "question": f"q{n}", "answer": "-", "metadata": {}} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSet(path, Letters(), seed=1)


def test_rows_for_a_share():
    assert rows_for_share(600_000, 0.25) == 200_000  # R1: 600k reasoning, 200k other
    assert rows_for_share(3, 0.0) == 0
    assert rows_for_share(9, 0.1) == 1


def test_mixed_rows_are_a_fixed_subset_in_their_order():
    rows = [{"id": str(n)} for n in range(100)]
    chosen = mixed_rows(rows, 10, seed=3)
    assert len(chosen) == 10 and chosen == mixed_rows(rows, 10, seed=3) != mixed_rows(rows, 10, seed=4)
    assert [int(row["id"]) for row in chosen] == sorted(int(row["id"]) for row in chosen)
    assert mixed_rows(rows, 1000, seed=3) == rows


def test_late_prompts_have_their_share(tmp_path):
    math, general = prompt_set(tmp_path / "m", "math", 8), prompt_set(tmp_path / "g", "general", 4)
    mix = PromptMix(math, general, share=0.25)
    assert mix.tasks == {"math", "general"}
    assert mix.take(0, 16, late=False) == math.take(0, 16)
    late = mix.take(0, 32, late=True)
    assert [prompt.task for prompt in late[:8]] == ["math"] * 3 + ["general"] + ["math"] * 3 + ["general"]
    assert [prompt for prompt in late if prompt.task == "general"] == general.take(0, 8)
    assert [prompt for prompt in late if prompt.task == "math"] == math.take(0, 24)
    # Whatever the pieces that are asked, the stream is one.
    assert [*mix.take(0, 5, late=True), *mix.take(5, 27, late=True)] == late


@pytest.mark.parametrize("share", [1.0, 0.1, 0.3])
def test_share_is_exact_over_ten(tmp_path, share):
    mix = PromptMix(prompt_set(tmp_path / "m", "math", 3), prompt_set(tmp_path / "g", "general", 3), share=share)
    assert sum(prompt.task == "general" for prompt in mix.take(50, 10, late=True)) == round(10 * share)
