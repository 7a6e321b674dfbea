"""Pack a corpus's documents whole into windows (data.packing: best_fit) before a large job does it at its start.

python tools/fit_corpus.py --corpus data/corpus/web data/corpus/code --seq-length 4096 --workers 16
"""

import argparse
import sys
from pathlib import Path

from r1train.data.fit import fit_corpus, fit_folder
from r1train.errors import exit_code


def run(args: argparse.Namespace) -> None:
    for prefix in args.corpus:
        size = fit_corpus(prefix, args.seq_length, workers=args.workers)
        filled = f"{100 * size.padding:.3f} % filled up"
        print(f"{fit_folder(prefix, args.seq_length)}: {size.pieces} pieces in {size.windows} windows, {filled}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="prefixes of .bin/.idx")
    parser.add_argument("--seq-length", type=int, required=True, help="stage.seq_length of the training to come")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
