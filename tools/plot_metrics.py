"""Figures for documents, as SVG: curves of several runs and seeds, or pass@1 of every stage of several schedules.

python tools/plot_metrics.py curves --out FILE.svg "RL 1=A/rl1" "RL 1=B/rl1" [--keys reward/accuracy response_tokens]
python tools/plot_metrics.py stages --out FILE.svg "seed 1=A" "seed 2=B"     (roots; also prints a table in Markdown)
"""

import argparse
import sys
from pathlib import Path

from r1train.errors import DataError, exit_code
from r1train.log.atomic import write_atomically
from r1train.report.figures import curves_svg, read_curves, read_stages, stages_markdown, stages_svg

RL_KEYS = ["reward/accuracy", "response_tokens", "reflection_words"]


def labelled(words: list[str]) -> list[tuple[str, Path]]:
    """(label, folder) of every LABEL=FOLDER; a folder alone is its own label."""
    found = []
    for word in words:
        label, equals, folder = word.partition("=")
        found.append((label, Path(folder if equals else label)))
    return found


def run_curves(args: argparse.Namespace) -> None:
    runs: dict[str, list] = {}
    for label, folder in labelled(args.runs):
        runs.setdefault(label, []).append(read_curves(folder, args.keys))
    write(args.out, curves_svg(runs, args.keys))


def run_stages(args: argparse.Namespace) -> None:
    roots = {label: read_stages(folder) for label, folder in labelled(args.roots)}
    write(args.out, stages_svg(roots))
    print(stages_markdown(roots))


def write(path: Path, svg: bytes) -> None:
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is not a folder. Fix: make it, or choose another --out")
    write_atomically(path, svg)
    print(f"written: {path} ({len(svg):,} bytes)", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    curves = kinds.add_parser("curves", help="keys of metrics.jsonl over optimizer steps")
    curves.add_argument("runs", nargs="+", metavar="LABEL=RUN", help="run folders; those of one label are its seeds")
    curves.add_argument("--keys", nargs="+", default=RL_KEYS, help=f"one panel each (default: {' '.join(RL_KEYS)})")
    curves.set_defaults(run=run_curves)
    stages = kinds.add_parser("stages", help="held-out pass@1 of every evaluated stage, with its 95 %% interval")
    stages.add_argument("roots", nargs="+", metavar="LABEL=ROOT", help="one schedule's run folders each")
    stages.set_defaults(run=run_stages)
    for kind in (curves, stages):
        kind.add_argument("--out", type=Path, required=True, help="the SVG to write")
    args = parser.parse_args()
    return exit_code(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
