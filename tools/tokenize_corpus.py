"""Tokenise text for pre-training, with many processes; a run that was killed continues when it is started again.

python tools/tokenize_corpus.py --input a.jsonl.gz b.parquet --tokenizer DIR --out-prefix corpus/a
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from r1train.data.corpus_build import BuildPlan, BuildReport, build_corpus
from r1train.data.corpus_part import PartOptions
from r1train.data.rows import Part, check_sources, expected_bytes
from r1train.errors import exit_code


def count(text: str) -> int:
    """A number of rows; ValueError, which argparse reports, for what is none."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", nargs="+", required=True, help=".jsonl or .txt (plain, .gz, .xz, .zst), .parquet, or builtin:NAME"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out-prefix", type=Path, required=True, help="PREFIX.bin and PREFIX.idx are written")
    parser.add_argument("--text-field", default="text", help="JSON key or parquet column with the document")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; all cores")
    parser.add_argument("--max-bad-rows", type=count, default=0, help="rows without a document to accept, all reported")
    parser.add_argument("--heldout-fraction", type=float, default=0.0, help="of the documents, into PREFIX_heldout")
    parser.add_argument("--fim-rate", type=float, default=0.0, help="share of documents cut for fill-in-the-middle")
    split = "share of the tokens of punctuation and line breaks to split again"
    parser.add_argument("--boundary-split-rate", type=float, default=0.0, help=split)
    parser.add_argument("--seed", type=int, default=1234, help="of the cuts and splits")
    parser.add_argument("--decontaminate", nargs="*", default=[], help="jsonl files, or builtin:gsm8k")
    parser.add_argument("--ngram", type=int, default=13, help="words that an evaluation set must not share")
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> BuildPlan:
    options = PartOptions(
        tokenizer=str(args.tokenizer),
        text_field=args.text_field,
        heldout_fraction=args.heldout_fraction,
        fim_rate=args.fim_rate,
        boundary_split_rate=args.boundary_split_rate,
        seed=args.seed,
        decontaminate=tuple(args.decontaminate),
        ngram=args.ngram,
    )
    return BuildPlan(tuple(args.input), args.out_prefix, options)


def build(plan: BuildPlan, *, workers: int, max_bad_rows: int) -> BuildReport:
    """build_corpus with a progress line on stderr: bytes of text, speed, time left where the total is known."""
    check_sources(list(plan.inputs))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        line = progress.add_task(plan.prefix.name, total=expected_bytes(list(plan.inputs)))

        def on_part(part: Part, is_new: bool) -> None:
            progress.update(line, advance=part.row_bytes, description=plan.prefix.name if is_new else "found done")

        return build_corpus(plan, workers=workers, max_bad_rows=max_bad_rows, on_part=on_part)


def run(args: argparse.Namespace) -> None:
    report = build(plan_of(args), workers=max(args.workers, 1), max_bad_rows=args.max_bad_rows)
    print(f"{args.out_prefix}: {report.train.documents} documents, {report.train.tokens} tokens")
    if report.heldout is not None:
        print(f"{args.out_prefix}_heldout: {report.heldout.documents} documents, {report.heldout.tokens} tokens")
    if report.bad_rows or report.removed:
        found = f"{report.bad_rows} bad rows, {report.removed} contaminated documents left out"
        print(f"{found}: {args.out_prefix}.report.jsonl")


def main() -> int:
    args = arguments()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
