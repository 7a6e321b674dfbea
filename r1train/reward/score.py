"""Scores responses: the weighted sum of accuracy, format, language consistency and repetition, parts kept."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType

from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.errors import ConfigError, Problem
from r1train.reward.accuracy import CODE_TASKS, OPEN_TASKS, needs_process
from r1train.reward.answer import find_answer, format_part
from r1train.reward.base import Score
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.isolation import require_isolation
from r1train.reward.jail import probe
from r1train.reward.language import language_score
from r1train.reward.repetition import repetition

CODE_MARGIN_S = 60.0  # beyond total_s, for building the sandboxes of a sample on a busy host


def check_tasks(cfg: RewardConfig, tasks: Iterable[str]) -> None:
    """Says before anything is generated where this host cannot grade a task (what no host can: reward/references.py).

    Raises ConfigError for tasks that need grader processes where there are none, EnvironmentProblem for code tasks
    where the host cannot isolate programs.
    """
    wanted = sorted(set(tasks))
    hanging = [task for task in wanted if needs_process(task)]
    if hanging and cfg.grader_processes == 0:
        what = f"graders of {', '.join(hanging)} can hang, so they must run in processes of their own"
        raise ConfigError([Problem("reward.grader_processes", 0, what, "1 or more")])
    if CODE_TASKS & set(wanted):
        require_isolation(probe(), allow_unisolated=cfg.code.allow_unisolated)


@dataclass(frozen=True)
class _Pending:
    """A submitted response. parts: those known without a grader; graded: whether its answer went to the graders.

    open: whether the task has no right answer, so that there is no accuracy.
    """

    parts: dict[str, float]
    graded: bool
    open: bool


class Scorer:
    """(prompt, response text) pairs -> Scores. Holds grader processes: use as a context manager or call close().

    All at once: score(pairs). While responses are still being generated: submit(key, prompt, response) for each that
    is finished, poll() between decoding steps, collect() at the end. Both give the same Scores.
    """

    def __init__(self, cfg: RewardConfig):
        self.cfg = cfg
        self._grader = Grader(processes=cfg.grader_processes, timeout_s=cfg.grader_timeout_s)
        self._pending: dict[int, _Pending] = {}

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """One Score per pair, in order: sum of weight * part, repetition subtracted (R1 sections 2.2 and 2.3.2).

        parts: "format" always, "accuracy" but for OPEN_TASKS (evaluation reads them whatever they weigh), "language"
        and "repetition" where they weigh. A response without an answer has accuracy 0. Raises DataError for an unknown
        task.
        """
        for key, (prompt, response) in enumerate(pairs):
            self.submit(key, prompt, response)
        scores = self.collect()
        return [scores[key] for key in range(len(pairs))]

    def submit(self, key: int, prompt: Prompt, response: str) -> None:
        """Takes one finished response; graders start on it at once. key: unique until collect(). Raises as score()."""
        assert key not in self._pending, key
        parts = {"format": format_part(response, self.cfg.answer_from)}
        if self.cfg.language != 0.0:
            parts["language"] = language_score(prompt, response)
        if self.cfg.repetition != 0.0:
            parts["repetition"] = repetition(response, size=self.cfg.repetition_words)
        answer = find_answer(response, self.cfg.answer_from)
        is_open = prompt.task in OPEN_TASKS
        graded = answer is not None and not is_open
        if answer is not None and graded:
            self._grader.submit(self._item(prompt, answer))
        self._pending[key] = _Pending(parts, graded, is_open)

    def poll(self) -> None:
        """Keeps the graders busy; takes no time when nothing has happened. Raises as score()."""
        self._grader.poll()

    def collect(self) -> dict[int, Score]:
        """Waits for everything submitted and returns the Score of each key. Raises as score()."""
        everything, self._pending = self._pending, {}
        grades = iter(self._grader.collect())
        no_answer = Grade(0.0, None)
        return {
            key: self._combine(pending, next(grades) if pending.graded else no_answer)
            for key, pending in everything.items()
        }

    def close(self) -> None:
        """Ends the grader processes."""
        self._grader.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _combine(self, pending: _Pending, verdict: Grade) -> Score:
        if verdict.correct is None:
            return Score(float("nan"), pending.parts, verdict.error)
        parts = pending.parts if pending.open else {**pending.parts, "accuracy": verdict.correct}
        weights = {
            "accuracy": self.cfg.accuracy,
            "format": self.cfg.format,
            "language": self.cfg.language,
            "repetition": -self.cfg.repetition,
        }
        return Score(
            sum(weights[name] * parts[name] for name in weights if name in parts), parts, None, verdict.timed_out
        )

    def _item(self, prompt: Prompt, answer: str) -> GradeItem:
        entry: dict[str, object] = {"question": prompt.question, "answer": prompt.answer, "metadata": prompt.metadata}
        if prompt.task not in CODE_TASKS:
            return GradeItem(task=prompt.task, answer=answer, entry=entry)
        entry["code"] = asdict(self.cfg.code)
        return GradeItem(prompt.task, answer, entry, limit_s=self.cfg.code.total_s + CODE_MARGIN_S)
