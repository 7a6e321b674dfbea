"""Many processes turn jsonl, parquet and text files into one .bin/.idx corpus; a build that was killed continues.

The rows are cut into parts by their sizes only. Each part becomes a small finished corpus in <prefix>.parts; at the
end they are joined in order. So the result does not depend on the number of workers, nor on how often it was killed.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from r1train.config.prepared import HELDOUT_SUFFIX
from r1train.data.corpus import ENDINGS, CorpusSize, CorpusWriter, beside
from r1train.data.corpus_part import PartOptions, PartReport, PartWorker, part_prefix, read_report, report_path
from r1train.data.files import write_rows
from r1train.data.rows import PART_BYTES, Part, check_sources, read_parts
from r1train.data.tokenizer import TOKENIZER_FILE, Tokenizer
from r1train.errors import DataError, R1TrainError, first_of
from r1train.log.atomic import write_atomically

# Raised when the same inputs must give other files than before.
_FORMAT = 2
_worker: PartWorker | None = None


class BuildStopped(R1TrainError):
    """A worker process ended; the finished parts are kept."""

    exit_code = 1


@dataclass(frozen=True)
class BuildPlan:
    """inputs: files or builtin:NAME, in the order of the documents. part_bytes: of rows, roughly, that a part holds."""

    inputs: tuple[str, ...]
    prefix: Path
    options: PartOptions
    part_bytes: int = PART_BYTES

    @property
    def folder(self) -> Path:
        return beside(self.prefix, ".parts")

    @property
    def mark(self) -> Path:
        """Where the fingerprint of what is being built stands."""
        return self.folder / "inputs"

    def fingerprint(self) -> str:
        """Hash of everything the result depends on; input files by name, size and time of change."""
        files = [*self.inputs, *self.options.decontaminate]
        found = {name: os.stat(name) for name in files if os.path.isfile(name)}
        stats = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found.items()]
        tokenizer = hashlib.sha256((Path(self.options.tokenizer) / TOKENIZER_FILE).read_bytes()).hexdigest()
        content = [_FORMAT, self.inputs, stats, tokenizer, {**asdict(self.options), "tokenizer": None}, self.part_bytes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class BuildReport:
    """train, heldout: what was written (heldout None where nothing was asked for or fell into it).

    bad_rows, removed: how many; each stands with file and line in prefix.report.jsonl.
    """

    train: CorpusSize
    heldout: CorpusSize | None
    bad_rows: int
    removed: int


def build_corpus(
    plan: BuildPlan, *, workers: int, max_bad_rows: int, on_part: Callable[[Part, bool], None]
) -> BuildReport:
    """Tokenise plan.inputs into prefix.bin/.idx/.json (and prefix_heldout.*), with prefix.report.jsonl beside them.

    max_bad_rows: more rows that are no documents than this are an error; the parts are kept, so a run that allows them
    ends at once. on_part(part, is_new): called in the main process whenever a part is finished or was found finished.
    Raises DataError (prefix, inputs, tokenizer, too many bad rows, no documents left) and BuildStopped (a worker was
    killed).
    """
    if plan.prefix.name in ("", "..") or plan.prefix.name.endswith(HELDOUT_SUFFIX):
        what = f"its last part is no name of a corpus; {HELDOUT_SUFFIX} at the end is for held-out documents"
        raise DataError(f"{plan.prefix}: {what}. Fix: another --out-prefix")
    check_sources(list(plan.inputs))
    PartWorker(plan.options, plan.folder)  # raises here, once, what every worker would raise
    _open_folder(plan)
    reports = _run_parts(plan, workers, on_part)
    bad = [item for report in reports for item in report.bad]
    if len(bad) > max_bad_rows:
        shown = first_of([f"{place}: {reason}" for place, reason in bad])
        fix = f"Fix: mend them, or allow them with --max-bad-rows {len(bad)}"
        raise DataError(f"{len(bad)} bad rows, allowed are {max_bad_rows}:{shown}\n{fix} (the work is kept)")
    return _join(plan, reports)


def _open_folder(plan: BuildPlan) -> None:
    """Make or re-enter the folder of parts. Raises DataError when something else was made there."""
    fingerprint = plan.fingerprint()
    if plan.mark.is_file():
        if plan.mark.read_text() != fingerprint:
            what = "unfinished work with other inputs, options or tokenizer, or of another version"
            raise DataError(f"{plan.folder}: {what}. Fix: delete that folder, or another --out-prefix")
        return
    # Held-out documents of an earlier build would be measured as this one's.
    files = [beside(plan.prefix, kind + ending) for kind in ("", HELDOUT_SUFFIX) for ending in ENDINGS]
    there = [str(path) for path in files if path.exists()]
    if there:
        raise DataError(f"{', '.join(there)}: already there. Fix: delete them, or another --out-prefix")
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.mark, fingerprint)


def _run_parts(plan: BuildPlan, workers: int, on_part: Callable[[Part, bool], None]) -> list[PartReport]:
    """Reports of all parts in order; parts that have one already are only read past."""
    reports: dict[int, PartReport] = {}
    running: dict[Future[PartReport], Part] = {}

    def collect() -> None:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            part = running.pop(future)
            reports[part.index] = future.result()
            on_part(part, True)

    with _pool(plan, workers) as pool:
        try:
            for part in read_parts(list(plan.inputs), plan.options.text_field, plan.part_bytes):
                if report_path(plan.folder, part.index).is_file():
                    reports[part.index] = read_report(report_path(plan.folder, part.index))
                    on_part(part, False)
                    continue
                # Parts wait in memory, so only as many as keep every worker busy.
                while len(running) > workers:
                    collect()
                running[pool.submit(_run_part, part)] = part
            while running:
                collect()
        except BrokenProcessPool:
            what = "a worker process was killed (out of memory?); the finished parts are kept"
            raise BuildStopped(f"{plan.folder}: {what}. Fix: run it again, with fewer --workers") from None
    return [reports[index] for index in range(len(reports))]


def _pool(plan: BuildPlan, workers: int) -> ProcessPoolExecutor:
    # A server without threads forks the workers: this process has some (progress display, the library's own).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(plan.options, plan.folder))


def _start(options: PartOptions, folder: Path) -> None:
    global _worker  # noqa: PLW0603 - one per process, and tasks of a pool share nothing else
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = PartWorker(options, folder)


def _end_with_parent() -> None:
    """Without this, workers of a killed main process would wait for its tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_part(part: Part) -> PartReport:
    assert _worker is not None
    return _worker.run(part)


def _join(plan: BuildPlan, reports: list[PartReport]) -> BuildReport:
    """Concatenate the parts, write the report, remove the parts last: killed in between, the next run does it again."""
    tokenizer, build = Tokenizer.load(plan.options.tokenizer), plan.mark.read_text()
    sizes: dict[str, CorpusSize | None] = {}
    for kind in ("", HELDOUT_SUFFIX):
        with CorpusWriter(beside(plan.prefix, kind), tokenizer, build=build) as writer:
            for index, report in enumerate(reports):
                if kind in report.sizes:
                    writer.append(part_prefix(plan.folder, index, kind), report.sizes[kind])
            if writer.size.documents == 0 and not kind:
                raise DataError(f"{plan.prefix}: no training document is left. Fix: other inputs or options")
            sizes[kind] = writer.finish() if writer.size.documents else None
    rows = list(_report_rows(reports))
    write_rows(beside(plan.prefix, ".report.jsonl"), rows)
    shutil.rmtree(plan.folder)
    train = sizes[""]
    assert train is not None
    bad = sum(len(report.bad) for report in reports)
    return BuildReport(train, sizes[HELDOUT_SUFFIX], bad, len(rows) - bad)


def _report_rows(reports: list[PartReport]) -> Iterator[dict]:
    for report in reports:
        yield from ({"place": place, "problem": reason} for place, reason in report.bad)
        yield from ({"place": place, "contaminated": ngram} for place, ngram in report.removed)
