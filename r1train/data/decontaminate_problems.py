"""Problems that share words with an evaluation set: neither asked in RL nor shown in the cold start (R1 app. D.1)."""

import logging
from collections import Counter
from dataclasses import dataclass

from r1train.config.schema_train import TaskConfig
from r1train.data.cold_start import cold_start_rows
from r1train.data.decontaminate import NgramFilter
from r1train.data.problems import Problem, ProblemSets
from r1train.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleanProblems:
    """train: prompts of RL. cold_start: rows of the cold start, which are also the documents of builtin:chats.

    removed: what is left out of the two, rows {set, id, task, contaminated}, the last the words that are shared.
    """

    train: list[Problem]
    cold_start: list[dict]
    removed: list[dict]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many are left out, by set and task."""
        found = Counter((row["set"], row["task"]) for row in self.removed)
        return {name: {task: count for (of, task), count in found.items() if of == name} for name, _ in found}


def clean_problems(
    tasks: tuple[TaskConfig, ...], sets: list[ProblemSets], ngrams: NgramFilter | None, *, seed: int
) -> CleanProblems:
    """What may be asked and shown, in the order of the tasks; everything without a filter. seed: of the styles.

    Looked at: the question without the task's template, and of the cold start the response, too. Raises DataError
    where nothing is left of a task's set: its questions then have the form of those in the evaluation set, as problems
    of one generator have, and words say nothing about them.
    """
    clean = CleanProblems([], [], [])
    for task, of_task in zip(tasks, sets, strict=True):
        rows = cold_start_rows(of_task.cold_start, task, seed=seed)
        if ngrams is None:
            clean.train.extend(of_task.train)
            clean.cold_start.extend(rows)
            continue
        train = {one.id: _bare(one.question, task.template) for one in of_task.train}
        cold = {row["id"]: f"{_bare(row['prompt'], task.template)}\n{row['response']}" for row in rows}
        found = {"train": _contaminated(train, ngrams), "cold_start": _contaminated(cold, ngrams)}
        for name, texts in (("train", train), ("cold_start", cold)):
            if texts and len(found[name]) == len(texts):
                raise DataError(
                    f"task {task.name!r}: each of its {len(texts)} {name} problems shares words with a file of "
                    f"data.decontaminate, the first {next(iter(found[name].values()))!r}. Fix: leave out that file, "
                    "which holds problems of the same form, or raise data.decontaminate_words"
                )
            clean.removed.extend(
                {"set": name, "id": key, "task": task.name, "contaminated": ngram} for key, ngram in found[name].items()
            )
        clean.train.extend(one for one in of_task.train if one.id not in found["train"])
        clean.cold_start.extend(row for row in rows if row["id"] not in found["cold_start"])
    for name, counts in clean.counts().items():
        _log.warning("%s: problems left out, listed in prompts/removed.jsonl: %s", name, counts)
    return clean


def _contaminated(texts: dict[str, str], ngrams: NgramFilter) -> dict[str, str]:
    """Id -> shared words."""
    return {key: ngram for key, text in texts.items() if (ngram := ngrams.find(text)) is not None}


def _bare(question: str, template: str) -> str:
    """The question as it was before the template, whose words stand in every question of the task."""
    before, _, after = template.partition("{question}")
    return question.removeprefix(before).removesuffix(after)
