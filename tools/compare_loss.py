"""Compare the metrics of two runs; exit code 1 and the first difference where they differ, "time/" keys left out.

python tools/compare_loss.py A/metrics.jsonl B/metrics.jsonl (--exact | --rtol 1e-5) [--keys loss] [--mean-of 50]
"""

import argparse
import sys
from pathlib import Path

from r1train.log.compare import first_difference, means
from r1train.log.metrics import read_metrics


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="metrics.jsonl")
    parser.add_argument("second", type=Path, help="metrics.jsonl")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--exact", action="store_true", help="every value bit-identical")
    how.add_argument("--rtol", type=float, help="numbers may differ by this share of the larger one")
    parser.add_argument("--keys", nargs="+", default=[], help="what to compare (default: everything)")
    parser.add_argument("--mean-of", type=int, default=1, help="compare the means of so many steps, not every step")
    args = parser.parse_args()
    if args.mean_of < 1:
        parser.error("--mean-of: at least 1 step")
    for path in (args.first, args.second):
        if not path.is_file():
            print(f"{path} is not a file. Fix: name the metrics.jsonl of a run folder", file=sys.stderr)
            return 2
    first, second = read_metrics(args.first), read_metrics(args.second)
    if args.mean_of > 1:
        first, second = (means(rows, steps=args.mean_of) for rows in (first, second))
    difference = first_difference(first, second, rtol=args.rtol, keys=args.keys)
    print(difference or f"equal: {len(first)} {'steps' if args.mean_of == 1 else f'means of {args.mean_of} steps'}")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
