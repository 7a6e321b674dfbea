"""Prepare stage: raw text and problem generators -> tokenizer, .bin/.idx corpora, cold-start examples and prompt sets.

Single process. Everything is built in <data.dir>.tmp and renamed file by file; the marker _DONE, with a hash of what
the data were made from, comes last. A second run with the same inputs does nothing. Files that are not its own stay.
"""

import hashlib
import importlib.metadata
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from r1train.config.prepared import HELDOUT_SUFFIX, TOKENIZER, prepared_names
from r1train.config.schema import RunConfig
from r1train.config.schema_train import DataConfig, TaskConfig
from r1train.convert.carry import carry_files
from r1train.data.chat_corpus import CHATS, write_chat_corpus
from r1train.data.cold_start import apportion, worked_text
from r1train.data.corpus import beside, write_corpus
from r1train.data.decontaminate import CleanTexts, NgramFilter, evaluation_file, evaluation_texts
from r1train.data.decontaminate_problems import clean_problems
from r1train.data.document_rules import document_rules
from r1train.data.documents import BUILTIN_PREFIX, asset, documents
from r1train.data.files import write_rows
from r1train.data.order import epoch_order
from r1train.data.passkey_corpus import PASSKEY, shown_texts, write_passkey_corpus
from r1train.data.problems import Problem, ProblemSets, assert_disjoint, build_problem_sets
from r1train.data.roles import TOKENIZER_FILES
from r1train.data.solutions import has_worked_solutions
from r1train.data.split import in_heldout
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import DataError
from r1train.log.lock import hold
from r1train.log.result import StageResult
from r1train.reward.references import check_references
from r1train.stages.data_folder import check_free, finished, place

_log = logging.getLogger(__name__)
LOCK_WAIT_S = 3600.0
REMOVED = "removed.jsonl"
WORKED = BUILTIN_PREFIX + "worked"
# What says where the files lie or how training reads them, not what is in them.
NOT_IN_FILES = ("dir", "loader", "packing", "mask_across_documents")
# Keys that came later, with what was done before them: data that were prepared then stay.
NEWER = {"pre_tokenizer": "digits", "boundary_split_rate": 0.0}
# Raised when the same config must give other files than before.
_FORMAT = 1
# The same of configs with data.decontaminate.
_FORMAT_DECONTAMINATED = 3
# Text of each corpus that the tokenizer sees: enough for its merges, little enough to keep a large corpus quick.
_TOKENIZER_CHARACTERS = 2_000_000


def run(cfg: RunConfig) -> dict:
    """Build cfg.data.dir. Returns the summary: tokens and documents per corpus, examples, prompts per set and task.

    Raises DataError for whatever is wrong with the sources, tasks or parameters, and where a file that it did not write
    has a name that it would write; the folder then stays as it was.
    """
    folder = Path(cfg.data.dir)
    fingerprint = _fingerprint(cfg.data)
    done = finished(folder, fingerprint)
    if done is not None:
        return done
    # What can be known before hours of tokenising. A given tokenizer may be the one that lies there.
    names = prepared_names(corpus.name + part for corpus in cfg.data.corpora for part in ("", HELDOUT_SUFFIX))
    check_free(folder, [name for name in names if name != TOKENIZER or cfg.data.tokenizer is None])
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        summary = _build(cfg.data, partial, fingerprint)
        place(partial, folder, fingerprint=fingerprint, summary=summary)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def run_stage(cfg: RunConfig) -> StageResult:
    """The stage's row in the table: what the corpora hold, in tokens.

    Another run that prepares the same folder is waited for; its result is taken where it is of the same inputs.
    """
    started = time.monotonic()
    with hold(Path(f"{cfg.data.dir}.lock"), wait_s=LOCK_WAIT_S):
        summary = run(cfg)
    tokens = sum(corpus["tokens"] for corpus in summary["corpora"].values())
    return StageResult(
        id=cfg.step, title=cfg.step, stage=cfg.stage.name, tokens=tokens, seconds=time.monotonic() - started
    )


def _fingerprint(data: DataConfig) -> str:
    """Hash of everything the files depend on: config, sources, and the packages that generate and tokenise."""
    paths = [Path(corpus.source) for corpus in data.corpora if not corpus.source.startswith(BUILTIN_PREFIX)]
    paths += [Path(path) for task in data.tasks for path in (task.train_file, task.heldout_file) if path is not None]
    paths += [evaluation_file(name) for name in data.decontaminate]
    paths += [Path(data.tokenizer) / name for name in TOKENIZER_FILES] if data.tokenizer is not None else []
    sources = [[path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None for path in paths]
    shipped = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(asset("").glob("*.gz"))]
    versions = [importlib.metadata.version(name) for name in ("reasoning-gym", "tokenizers")]
    left_out = NOT_IN_FILES if data.decontaminate else (*NOT_IN_FILES, "decontaminate", "decontaminate_words")
    config = {name: value for name, value in asdict(data).items() if name not in left_out}
    config = {name: value for name, value in config.items() if name not in NEWER or value != NEWER[name]}
    number = _FORMAT_DECONTAMINATED if data.decontaminate else _FORMAT
    content = json.dumps([number, config, sources, shipped, versions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _build(data: DataConfig, out: Path, build: str) -> dict:
    _check_names(data)
    sets = _problem_sets(data)
    train = list(itertools.chain.from_iterable(of_task.train for of_task in sets))
    heldout = list(itertools.chain.from_iterable(of_task.heldout for of_task in sets))
    cold = list(itertools.chain.from_iterable(of_task.cold_start for of_task in sets))
    worked = _shuffled(list(itertools.chain.from_iterable(of_task.worked for of_task in sets)), data.seed, "worked")
    check_references([*train, *heldout], place="data.tasks")
    ngrams = _evaluation_ngrams(data)
    clean = clean_problems(data.tasks, sets, ngrams, seed=data.seed)
    every, removed = _clean_texts(data, worked, ngrams)
    passkey = {c.name: c.passkey for c in data.corpora if c.passkey is not None}
    texts = {name: _Side(source, data.heldout_fraction, heldout=False) for name, source in every.items()}
    left_out = {name: _Side(source, data.heldout_fraction, heldout=True) for name, source in every.items()}
    heads = [_head(source) for source in texts.values()]
    heads += [shown_texts(settings, seed=data.seed, name=name) for name, settings in passkey.items()]
    tokenizer = _tokenizer(data, itertools.chain.from_iterable(heads), out / "tokenizer")
    (out / "corpus").mkdir()
    for name, listed in removed.items():
        write_rows(beside(out / "corpus" / name, ".report.jsonl"), listed)
    if ngrams is not None:
        write_rows(out / "prompts" / REMOVED, clean.removed)
    rates = {"fim_rate": data.fim_rate, "split_rate": data.boundary_split_rate}
    rules = document_rules(tokenizer, **rates, seed=data.seed)
    sizes = {
        name: asdict(write_corpus(source, tokenizer, out / "corpus" / name, rules=rules, build=build))
        for name, source in texts.items()
    }
    for name, settings in passkey.items():
        sizes[name] = asdict(write_passkey_corpus(settings, tokenizer, out / "corpus" / name, seed=data.seed))
    for corpus in data.corpora:
        if corpus.source == CHATS:
            sizes[corpus.name] = asdict(write_chat_corpus(clean.cold_start, tokenizer, out / "corpus" / corpus.name))
    heldout_sizes = {
        name: asdict(write_corpus(source, tokenizer, out / "corpus" / (name + HELDOUT_SUFFIX), build=build))
        for name, source in left_out.items()
        if any(True for _ in source)
    }
    assert_disjoint(train, heldout, cold, worked)
    return {
        "corpora": sizes,
        "heldout_corpora": heldout_sizes,
        "removed": {name: len(listed) for name, listed in removed.items()},
        "removed_problems": clean.counts(),
        "cold_start": write_rows(out / "cold_start.jsonl", _shuffled(clean.cold_start, data.seed, "cold_start")),
        "train": _write_prompts(out / "prompts" / "train.jsonl", _shuffled(clean.train, data.seed, "train")),
        "heldout": _write_prompts(out / "prompts" / "heldout.jsonl", heldout),
    }


def _evaluation_ngrams(data: DataConfig) -> NgramFilter | None:
    """What nothing that is trained on may share with the sets of data.decontaminate; None where it names none."""
    if not data.decontaminate:
        return None
    return NgramFilter(evaluation_texts(map(evaluation_file, data.decontaminate)), n=data.decontaminate_words)


def _clean_texts(
    data: DataConfig, worked: list[Problem], ngrams: NgramFilter | None
) -> tuple[dict[str, Iterable[str]], dict[str, list[dict]]]:
    """Documents by corpus, and where there is a filter, a row for each that it leaves out.

    Chats are clean_problems' rows; the filler of passkey documents is ours.
    """
    sources = {c.name: c.source for c in data.corpora if c.source not in (PASSKEY, CHATS)}
    every = {name: _corpus_texts(source, worked) for name, source in sources.items()}
    if ngrams is None:
        return every, {}
    clean = {name: CleanTexts(texts, ngrams) for name, texts in every.items()}
    rows = {
        name: [{"place": f"{sources[name]}:{number}", "contaminated": ngram} for number, ngram in texts.removed.items()]
        for name, texts in clean.items()
    }
    for name, left_out in rows.items():
        if left_out:
            _log.warning("%s: %d documents left out, listed in corpus/%s.report.jsonl", name, len(left_out), name)
    return dict(clean), rows


def _tokenizer(data: DataConfig, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The tokenizer that the config names, with the small files that lie beside it, or one that is trained on texts."""
    if data.tokenizer is None:
        fim, pre_tokenizer = data.fim_rate > 0, data.pre_tokenizer
        bpe = train_tokenizer(texts, data.tokenizer_vocab_size, fim=fim, pre_tokenizer=pre_tokenizer)
        save_tokenizer(bpe, folder)
        return Tokenizer.load(folder)
    carry_files(Path(data.tokenizer), folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != data.tokenizer_vocab_size:
        what = f"{data.tokenizer} has token ids below {tokenizer.vocab_size}"
        raise DataError(f"vocabulary of {data.tokenizer_vocab_size}: {what}. Fix: data.tokenizer_vocab_size")
    return tokenizer


def _check_names(data: DataConfig) -> None:
    for what, names in (("corpora", [c.name for c in data.corpora]), ("tasks", [t.name for t in data.tasks])):
        needed = what == "corpora" and data.tokenizer is None
        if len(set(names)) < len(names) or (needed and not names):
            raise DataError(f"data.{what} are {names}: each once, and at least one. Fix: data.{what}")
    uses_worked = any(corpus.source == WORKED for corpus in data.corpora)
    if uses_worked != (data.worked_examples > 0):
        raise DataError(
            f"data.worked_examples = {data.worked_examples}, and {'a' if uses_worked else 'no'} corpus uses {WORKED}. "
            f"Fix: worked_examples above 0 together with a corpus {WORKED}, or neither"
        )


def _problem_sets(data: DataConfig) -> list[ProblemSets]:
    """Problem sets in the order of data.tasks; worked examples are shared out by the tasks' train counts."""
    solvable = [task for task in data.tasks if has_worked_solutions(task.name) and task.train > 0]
    if data.worked_examples and not solvable:
        raise DataError(
            "data.worked_examples: no task has written solutions. Fix: set it to 0, or add a task such as chain_sum"
        )
    shares = apportion([task.train for task in solvable], data.worked_examples) if solvable else []
    worked = dict(zip((task.name for task in solvable), shares, strict=True))
    seen: set[str] = set()

    def build(task: TaskConfig) -> ProblemSets:
        return build_problem_sets(task, worked.get(task.name, 0), seed=data.seed, seen=seen)

    return [build(task) for task in data.tasks]


def _corpus_texts(source: str, worked: list[Problem]) -> Iterable[str]:
    """Documents of one corpus; can be read twice, for the tokenizer and for the corpus."""
    if source == WORKED:
        return [worked_text(problem) for problem in worked]
    return _Documents(source)


class _Documents:
    """documents(source), from the beginning each time it is read."""

    def __init__(self, source: str):
        self._source = source

    def __iter__(self) -> Iterator[str]:
        return documents(self._source)


class _Side:
    """Documents of one side of the held-out split, from the beginning each time it is read."""

    def __init__(self, texts: Iterable[str], share: float, *, heldout: bool):
        self._texts, self._share, self._heldout = texts, share, heldout

    def __iter__(self) -> Iterator[str]:
        return (text for text in self._texts if in_heldout(text, self._share) == self._heldout)


def _head(texts: Iterable[str]) -> Iterator[str]:
    """The first documents, until they hold _TOKENIZER_CHARACTERS."""
    characters = 0
    for text in texts:
        yield text
        characters += len(text)
        if characters >= _TOKENIZER_CHARACTERS:
            return


def _shuffled[T](items: list[T], seed: int, stream: str) -> list[T]:
    return [items[index] for index in epoch_order(len(items), seed=seed, epoch=0, stream=f"prepare/{stream}")]


def _write_prompts(path: Path, problems: list[Problem]) -> dict[str, int]:
    """Write a prompt set; returns the number of prompts per task."""
    write_rows(path, (problem.row() for problem in problems))
    tasks = [problem.task for problem in problems]
    return {task: tasks.count(task) for task in sorted(set(tasks))}
