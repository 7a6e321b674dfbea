"""Rules about the data's composition (the files themselves: check_files.py)."""

import math
from collections import Counter

from r1train.config.schema import RunConfig
from r1train.errors import Problem


def names_are_unique(cfg: RunConfig) -> list[Problem]:
    problems = []
    for key, items in (("data.corpora", cfg.data.corpora), ("data.tasks", cfg.data.tasks)):
        counts = Counter(item.name for item in items)
        for name, count in counts.items():
            if count > 1:
                problems.append(Problem(key, name, f"this name stands {count} times", "give each its own name"))
    return problems


def corpus_weights_count(cfg: RunConfig) -> list[Problem]:
    corpora = cfg.data.corpora
    problems = [
        Problem(f"data.corpora.{index}.weight", corpus.weight, "below 0", "0 leaves the corpus out")
        for index, corpus in enumerate(corpora)
        if corpus.weight < 0
    ]
    if sum(corpus.weight for corpus in corpora) <= 0:
        weights = [corpus.weight for corpus in corpora]
        problems.append(Problem("data.corpora", weights, "no corpus has a weight above 0", "give one a weight"))
    return problems


def task_styles_are_shares(cfg: RunConfig) -> list[Problem]:
    problems = []
    for index, task in enumerate(cfg.data.tasks):
        shares = task.styles.values()
        is_share = min(shares, default=0.0) >= 0 and math.isclose(sum(shares), 1, abs_tol=1e-6)
        if task.cold_start > 0 and not is_share:
            what = "the shares of the cold-start styles must be 0 or more and sum to 1"
            problems.append(Problem(f"data.tasks.{index}.styles", task.styles, what, "e.g. {steps: 0.5, direct: 0.5}"))
    return problems


def task_has_problems(cfg: RunConfig) -> list[Problem]:
    return [
        Problem(
            f"data.tasks.{index}", task.name, "train, heldout and cold_start are all 0", "ask for some, or remove it"
        )
        for index, task in enumerate(cfg.data.tasks)
        if task.train == task.heldout == task.cold_start == 0
    ]


def worked_corpus_has_examples(cfg: RunConfig) -> list[Problem]:
    uses = any(corpus.source == "builtin:worked" and corpus.weight > 0 for corpus in cfg.data.corpora)
    if not uses or cfg.data.worked_examples > 0:
        return []
    what = "the corpus builtin:worked would be empty"
    return [Problem("data.worked_examples", cfg.data.worked_examples, what, "above 0, or remove that corpus")]


RULES = (names_are_unique, corpus_weights_count, task_styles_are_shares, task_has_problems, worked_corpus_has_examples)
