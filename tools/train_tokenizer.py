"""Train a byte-level BPE: python tools/train_tokenizer.py --input a.txt b.jsonl.gz --vocab-size 512 --out DIR."""

import argparse
import itertools
import sys
from pathlib import Path

from r1train.data.documents import documents
from r1train.data.tokenizer import save_tokenizer, train_tokenizer
from r1train.errors import R1TrainError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", nargs="+", required=True, help=".txt or .jsonl (plain, .gz, .xz, .zst), or builtin:NAME"
    )
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets tokenizer.json")
    parser.add_argument("--fim", action="store_true", help="with the tokens of fill-in-the-middle")
    args = parser.parse_args()
    try:
        bpe = train_tokenizer(itertools.chain.from_iterable(map(documents, args.input)), args.vocab_size, fim=args.fim)
        save_tokenizer(bpe, args.out)
    except R1TrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: vocabulary of {args.vocab_size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
