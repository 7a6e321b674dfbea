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
    assert mix.take(0, 16, late=None) == math.take(0, 16)
    late = mix.take(0, 32, late=0)
    assert [prompt.task for prompt in late[:8]] == ["math"] * 3 + ["general"] + ["math"] * 3 + ["general"]
    assert [prompt for prompt in late if prompt.task == "general"] == general.take(0, 8)
    assert [prompt for prompt in late if prompt.task == "math"] == math.take(0, 24)
    # Whatever the pieces that are asked, the stream is one.
    assert [*mix.take(0, 5, late=0), *mix.take(5, 27, late=0)] == late


def test_the_first_set_goes_on_where_it_was_and_the_second_begins(tmp_path):
    """R1: 1,296 steps of 32 prompts before the general prompts join, with a share of 0.45."""
    math, general = prompt_set(tmp_path / "m", "math", 8), prompt_set(tmp_path / "g", "general", 4)
    asked: list[tuple[str, int]] = []

    class Spy:
        def __init__(self, name, prompts):
            self.name, self.prompts = name, prompts.prompts

        def take(self, position, count):
            asked.extend((self.name, index) for index in range(position, position + count))
            return self.prompts[:count]

    mix = PromptMix(Spy("math", math), Spy("general", general), share=0.45)
    for start in (41440, 41472, 41504):
        mix.take(start, 32, late=None if start < 41472 else 41472)
    assert [index for name, index in asked if name == "math"] == list(range(41440, 41472 + 36))
    assert [index for name, index in asked if name == "general"] == list(range(28))  # 0.45 of 64
    assert sum(name == "general" for name, _ in asked[32:52]) == 9


@pytest.mark.parametrize("share", [1.0, 0.1, 0.3])
def test_share_is_exact_over_ten(tmp_path, share):
    mix = PromptMix(prompt_set(tmp_path / "m", "math", 3), prompt_set(tmp_path / "g", "general", 3), share=share)
    assert sum(prompt.task == "general" for prompt in mix.take(50, 10, late=0)) == round(10 * share)
