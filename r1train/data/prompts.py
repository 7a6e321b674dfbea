"""Prompts with verifiable answers, in an order that is a pure function of (seed, position)."""

from dataclasses import dataclass
from pathlib import Path

from r1train.data.chat import prompt_tokens
from r1train.data.files import check_unique, read_rows
from r1train.data.order import epoch_order
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """One question for rollouts. token_ids: rendered up to and with <|assistant|>."""

    id: str
    task: str
    question: str
    answer: str
    metadata: dict
    token_ids: tuple[int, ...]


class PromptSet:
    """Prompts of a jsonl file. State of training: the number of prompts taken."""

    def __init__(self, path: str | Path, tokenizer: Tokenizer, *, seed: int, max_prompt_tokens: int | None = None):
        """path: jsonl with id, task, question, answer, metadata.

        Raises DataError: file missing, empty or malformed (a missing or blank answer too), an id twice, prompts longer
        than max_prompt_tokens (None: no limit).
        """
        kinds: dict[str, type] = {"id": str, "task": str, "question": str, "answer": str, "metadata": dict}
        rows = read_rows(Path(path), kinds)
        check_unique([row["id"] for row in rows], Path(path))
        self.prompts = tuple(
            Prompt(**{name: row[name] for name in kinds}, token_ids=tuple(prompt_tokens(tokenizer, row["question"])))
            for row in rows
        )
        self._seed = seed
        too_long = [
            prompt for prompt in self.prompts if len(prompt.token_ids) > (max_prompt_tokens or len(prompt.token_ids))
        ]
        if too_long:
            longest = max(too_long, key=lambda prompt: len(prompt.token_ids))
            raise DataError(
                f"{path}: {len(too_long)} of {len(self.prompts)} prompts are longer than {max_prompt_tokens} tokens, "
                f"the longest is {longest.id} with {len(longest.token_ids)}. Fix: a larger limit, or remove them"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, position: int, count: int) -> list[Prompt]:
        """Prompts [position, position + count) of the endless shuffled stream; every epoch has its own order."""
        return [self._at(index) for index in range(position, position + count)]

    def of_task(self, task: str) -> tuple[Prompt, ...]:
        """Prompts of one task, in file order."""
        return tuple(prompt for prompt in self.prompts if prompt.task == task)

    def _at(self, index: int) -> Prompt:
        epoch, place = divmod(index, len(self.prompts))
        return self.prompts[epoch_order(len(self.prompts), seed=self._seed, epoch=epoch, stream="prompts")[place]]
