"""One worker's share of tokenize_corpus: a part of the rows -> small finished corpora, and what was wrong with it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from r1train.config.prepared import HELDOUT_SUFFIX
from r1train.data.corpus import CorpusSize, CorpusWriter, beside
from r1train.data.decontaminate import NgramFilter, evaluation_file, evaluation_texts
from r1train.data.document_rules import NO_RULES, document_rules
from r1train.data.encode import encode_documents
from r1train.data.rows import Part, row_text
from r1train.data.split import in_heldout
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError
from r1train.log.atomic import write_atomically


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """Everything besides the rows that decides what comes out.

    text_field: key of a JSON row, or column of a parquet file, that holds the document. heldout_fraction: of the
    documents, into a corpus of their own, which FIM and splits leave alone. boundary_split_rate: data/boundaries.py.
    decontaminate: jsonl files of evaluation sets, or
    builtin:gsm8k, whose ngram-word runs a training document must not share (held-out documents neither).
    """

    tokenizer: str
    text_field: str = "text"
    heldout_fraction: float = 0.0
    fim_rate: float = 0.0
    boundary_split_rate: float = 0.0
    seed: int = 1234
    decontaminate: tuple[str, ...] = ()
    ngram: int = 13


@dataclass(frozen=True)
class PartReport:
    """sizes: of the corpora of this part, "" for training and the suffix of the held-out one; those with documents.

    bad: place and reason of rows that are no documents. removed: place and n-gram of contaminated documents.
    """

    sizes: dict[str, CorpusSize] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)


class PartWorker:
    """Made once per process: the tokenizer and the n-grams take a while to load."""

    def __init__(self, options: PartOptions, folder: Path):
        """Raises DataError: no such tokenizer or tokens, shares outside [0, 1), bad evaluation files."""
        shares = {"heldout_fraction": options.heldout_fraction, "fim_rate": options.fim_rate}
        for name, share in (shares | {"boundary_split_rate": options.boundary_split_rate}).items():
            if not 0 <= share < 1:
                raise DataError(f"{name} {share}: not a share. Fix: at least 0 and below 1")
        self._options, self._folder = options, folder
        self._tokenizer = Tokenizer.load(options.tokenizer)
        self._rules = document_rules(
            self._tokenizer, fim_rate=options.fim_rate, split_rate=options.boundary_split_rate, seed=options.seed
        )
        paths = map(evaluation_file, options.decontaminate)
        self._ngrams = NgramFilter(evaluation_texts(paths), n=options.ngram) if options.decontaminate else None

    def run(self, part: Part) -> PartReport:
        """Write the part's corpora and then, as the sign that they are finished, its report."""
        report, texts = PartReport(), {"": [], HELDOUT_SUFFIX: []}
        for row in part.rows:
            text, problem = row_text(row, self._options.text_field)
            if problem:
                report.bad.append((row.place, problem))
            elif self._ngrams is not None and (ngram := self._ngrams.find(text)) is not None:
                report.removed.append((row.place, ngram))
            else:
                texts[HELDOUT_SUFFIX if in_heldout(text, self._options.heldout_fraction) else ""].append(text)
        for kind, of_kind in texts.items():
            if of_kind:
                report.sizes[kind] = self._write(part.index, kind, of_kind)
        write_report(report, report_path(self._folder, part.index))
        return report

    def _write(self, index: int, kind: str, texts: list[str]) -> CorpusSize:
        with CorpusWriter(part_prefix(self._folder, index, kind), self._tokenizer) as writer:
            for document in encode_documents(texts, self._tokenizer, NO_RULES if kind else self._rules):
                writer.add(document)
            return writer.finish()


def part_prefix(folder: Path, index: int, kind: str) -> Path:
    return folder / f"part_{index:07d}{kind}"


def report_path(folder: Path, index: int) -> Path:
    return beside(part_prefix(folder, index, ""), ".report")


def write_report(report: PartReport, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(report)))


def read_report(path: Path) -> PartReport:
    content = json.loads(path.read_text(encoding="utf-8"))
    sizes = {kind: CorpusSize(**size) for kind, size in content["sizes"].items()}
    return PartReport(sizes, [tuple(item) for item in content["bad"]], [tuple(item) for item in content["removed"]])
