"""Problem sets with verifiable answers: training, held-out and cold-start problems that share no question.

Disjoint by construction: a generated problem is held out if and only if a hash of its normalised question falls into
the held-out bucket, whatever the seed, the task or the set sizes; every set takes from one stream without repeats.
GSM8K, and problems from files, keep their own split. Disjoint by check: assert_disjoint compares the finished sets.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import reasoning_gym

from r1train.config.schema_train import TaskConfig
from r1train.data.documents import gsm8k_rows
from r1train.data.problem_files import problem_rows
from r1train.errors import DataError

HELDOUT_ONE_IN = 8
GSM8K = "gsm8k"
# Draws without a new question after which a generator counts as exhausted.
_PATIENCE = 20_000


@dataclass(frozen=True)
class Problem:
    """One question. metadata: what reasoning-gym's scorer needs, or `solution` (GSM8K)."""

    id: str
    task: str
    question: str
    answer: str
    metadata: dict

    def row(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class ProblemSets:
    """The sets of one task; worked: problems whose solutions become pre-training text."""

    train: list[Problem]
    heldout: list[Problem]
    cold_start: list[Problem]
    worked: list[Problem]


_SHORT_QUESTIONS: dict[str, Callable[[dict], str]] = {
    "chain_sum": lambda meta: meta["expression"].replace(" ", "") + "=",
    "gcd": lambda meta: f"gcd({','.join(map(str, meta['numbers']))})=",
    "count_bits": lambda meta: f"bits({meta['number']})=",
    "letter_counting": lambda meta: f"count {meta['target_letter']}: {' '.join(meta['span'])}",
    "number_sorting": lambda meta: f"sort {meta['direction']}: {' '.join(meta['original_numbers'])}",
    "spell_backward": lambda meta: f"reverse: {meta['word']}",
}


def short_question(task: str, question: str, metadata: dict) -> str:
    """The question in the few tokens a small model can afford: chain_sum's "State the final answer to the following
    arithmetic problem: 4 + 7 - 3 =" becomes "4+7-3=". Tasks without a short form keep their text.

    Scoring is untouched: reasoning-gym's scorers read the answer and the metadata, not the question.
    """
    shorten = _SHORT_QUESTIONS.get(task)
    return shorten(metadata) if shorten else question


def normalised(question: str) -> str:
    """What makes two questions the same: letters and digits regardless of case and white space."""
    return "".join(question.casefold().split())


def is_heldout(question: str) -> bool:
    """Whether a generated problem belongs to the held-out bucket: one in HELDOUT_ONE_IN questions, by hash."""
    digest = hashlib.blake2b(normalised(question).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0


def build_problem_sets(task: TaskConfig, worked: int, *, seed: int, seen: set[str]) -> ProblemSets:
    """The sets of one task. worked: how many problems for worked solutions; seed: of the generator.

    seen: normalised questions that earlier tasks took; this task's are added. Raises DataError when the task or its
    parameters are unknown, or there are not enough distinct problems.
    """
    return _asked(_sets(task, worked, seed=seed, seen=seen), task.template)


def _asked(sets: ProblemSets, template: str) -> ProblemSets:
    """The sets with every question as it is asked; worked ones become text, not prompts."""
    return ProblemSets(
        worked=sets.worked,
        **{
            name: [replace(one, question=template.replace("{question}", one.question)) for one in found]
            for name, found in (("train", sets.train), ("heldout", sets.heldout), ("cold_start", sets.cold_start))
        },
    )


def _sets(task: TaskConfig, worked: int, *, seed: int, seen: set[str]) -> ProblemSets:
    if task.name == GSM8K or task.train_file or task.heldout_file:
        return _sets_of_rows(task, worked, seen)
    wanted = {"heldout": task.heldout, "train": task.train, "cold_start": task.cold_start, "worked": worked}
    sets: dict[str, list[Problem]] = {name: [] for name in wanted}
    since_new = 0
    stream = _generate(task, seed)
    while open_sets := [name for name in wanted if len(sets[name]) < wanted[name]]:
        if since_new == _PATIENCE:
            raise _too_few(task, sets, wanted)
        question, answer, metadata = next(stream)
        since_new += 1
        bucket = ["heldout"] if is_heldout(question) else ["train", "cold_start", "worked"]
        target = next((name for name in bucket if name in open_sets), None)
        if target is None or normalised(question) in seen:
            continue
        since_new = 0
        seen.add(normalised(question))
        identity = f"{task.name}/{target}/{len(sets[target]):06d}"
        sets[target].append(Problem(identity, task.name, question, answer, metadata))
    return ProblemSets(**sets)


def _generate(task: TaskConfig, seed: int) -> Iterator[tuple[str, str, dict]]:
    """Endless (short question, answer, metadata) of a reasoning-gym data set."""
    # Item i of a data set is drawn with seed + i, so tasks and neighbouring seeds need starts far apart.
    start = int.from_bytes(hashlib.blake2b(f"{seed}/{task.name}".encode(), digest_size=5).digest(), "big")
    try:
        source = reasoning_gym.create_dataset(task.name, seed=start, size=1, **task.params)
    except ValueError as error:
        raise DataError(
            f"task {task.name!r}: {error}. Fix: a data set of reasoning-gym with its own parameters, or {GSM8K}"
        ) from None
    except (TypeError, AssertionError) as error:
        raise DataError(
            f"task {task.name!r}: parameters {task.params} not accepted: {error}. Fix: data.tasks.params"
        ) from None
    index = 0
    while True:
        item = source[index]
        index += 1
        # Through JSON once, so that a problem in memory equals the same problem read from its file.
        metadata = json.loads(json.dumps(item["metadata"], default=str))
        yield short_question(task.name, item["question"], metadata), str(item["answer"]), metadata


def _sets_of_rows(task: TaskConfig, worked: int, seen: set[str]) -> ProblemSets:
    """Rows by their own split: heldout from the test rows, train and cold start from the train rows, in file order."""
    if worked:
        raise DataError(f"task {task.name!r}: worked examples are not generated. Fix: use a corpus, as builtin:gsm8k")
    files = {"heldout": task.heldout_file, "train": task.train_file}
    pools = {split: _distinct_rows(split, path, seen, from_files=any(files.values())) for split, path in files.items()}
    wanted = {"heldout": task.heldout, "train": task.train, "cold_start": task.cold_start, "worked": 0}
    sets: dict[str, list[Problem]] = {"worked": []}
    for name in ("heldout", "train", "cold_start"):
        pool = pools["heldout" if name == "heldout" else "train"]
        taken = [next(pool, None) for _ in range(wanted[name])]
        sets[name] = [
            Problem(
                f"{task.name}/{name}/{index:06d}",
                task.name,
                row["question"],
                row["answer"],
                {"source": row["id"], **({"solution": row["solution"]} if "solution" in row else {})},
            )
            for index, row in enumerate(taken)
            if row is not None
        ]
    if any(len(sets[name]) < wanted[name] for name in wanted):
        raise _too_few(task, sets, wanted)
    return ProblemSets(**sets)


def _distinct_rows(split: str, path: str | None, seen: set[str], *, from_files: bool) -> Iterator[dict]:
    """Rows whose question nobody took before. path: the split's file, where the problems come from files."""
    rows = gsm8k_rows(split) if not from_files else problem_rows(Path(path)) if path is not None else []
    for row in rows:
        if normalised(row["question"]) not in seen:
            seen.add(normalised(row["question"]))
            yield row


def _too_few(task: TaskConfig, sets: dict[str, list[Problem]], wanted: dict[str, int]) -> DataError:
    short = ", ".join(
        f"{len(sets[name])} of {wanted[name]} {name}" for name in wanted if len(sets[name]) < wanted[name]
    )
    return DataError(
        f"task {task.name!r} with {task.params}: not enough distinct problems, only {short}. "
        "Fix: ask for fewer, or widen data.tasks.params"
    )


def assert_disjoint(*sets: Iterable[Problem]) -> None:
    """Check that no normalised question is in two of the sets or twice in one; DataError names a few otherwise."""
    owners: dict[str, list[str]] = {}
    for problem in itertools.chain(*sets):
        owners.setdefault(normalised(problem.question), []).append(problem.id)
    shared = [ids for ids in owners.values() if len(ids) > 1]
    if shared:
        raise DataError(
            f"{len(shared)} questions are not in one place only, for example {shared[:3]}. "
            "Fix: remove data.dir and run the prepare stage again"
        )
