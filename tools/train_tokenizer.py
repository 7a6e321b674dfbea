"""Train a byte-level BPE: python tools/train_tokenizer.py --input a.txt b.jsonl.gz --vocab-size 512 --out DIR."""

import argparse
import itertools
import sys
from pathlib import Path

from r1train.data.documents import documents
from r1train.data.pre_tokenizer import PRE_TOKENIZERS
from r1train.data.tokenizer import save_tokenizer, train_tokenizer
from r1train.errors import exit_code


def run(args: argparse.Namespace) -> None:
    texts = itertools.chain.from_iterable(map(documents, args.input))
    bpe = train_tokenizer(texts, args.vocab_size, fim=args.fim, pre_tokenizer=args.pre_tokenizer)
    save_tokenizer(bpe, args.out)
    print(f"{args.out}: vocabulary of {args.vocab_size}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", nargs="+", required=True, help=".txt or .jsonl (plain, .gz, .xz, .zst), or builtin:NAME"
    )
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets tokenizer.json")
    parser.add_argument("--fim", action="store_true", help="with the tokens of fill-in-the-middle")
    parser.add_argument("--pre-tokenizer", choices=PRE_TOKENIZERS, default="digits", help="how words are found first")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
