"""Scores responses: the weighted sum of accuracy, format and language consistency, parts kept."""

from collections.abc import Sequence
from types import TracebackType

from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.reward.format import extract_answer, format_score
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.language import language_score


class Scorer:
    """(prompt, response text) pairs -> Scores. Holds grader processes: use as a context manager or call close()."""

    def __init__(self, cfg: RewardConfig):
        self.cfg = cfg
        self._grader = Grader(processes=cfg.grader_processes, timeout_s=cfg.grader_timeout_s)

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """One Score per pair, in order: w_a * accuracy + w_f * format + w_l * language (R1 sections 2.2 and 2.3.2).

        parts: "accuracy" and "format" always (evaluation reads them whatever they weigh), "language" where it weighs.
        A response without an answer has accuracy 0. Raises DataError for an unknown task.
        """
        answers = [extract_answer(response) for _, response in pairs]
        asked = [position for position, answer in enumerate(answers) if answer is not None]
        items = [_item(pairs[position][0], answers[position] or "") for position in asked]
        verdicts = dict(zip(asked, self._grader.grade(items), strict=True))
        no_answer = Grade(0.0, None)
        return [
            self._combine(prompt, response, verdicts.get(position, no_answer))
            for position, (prompt, response) in enumerate(pairs)
        ]

    def close(self) -> None:
        """Ends the grader processes."""
        self._grader.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _combine(self, prompt: Prompt, response: str, verdict: Grade) -> Score:
        parts = {"format": format_score(response)}
        if self.cfg.language != 0.0:
            parts["language"] = language_score(prompt, response)
        if verdict.correct is None:
            return Score(float("nan"), parts, verdict.error)
        parts["accuracy"] = verdict.correct
        weights = {"accuracy": self.cfg.accuracy, "format": self.cfg.format, "language": self.cfg.language}
        return Score(sum(weights[name] * parts[name] for name in weights if name in parts), parts, None)


def _item(prompt: Prompt, answer: str) -> GradeItem:
    entry = {"question": prompt.question, "answer": prompt.answer, "metadata": prompt.metadata}
    return GradeItem(task=prompt.task, answer=answer, entry=entry)
