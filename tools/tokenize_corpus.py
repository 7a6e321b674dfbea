"""Tokenise text for pre-training.

python tools/tokenize_corpus.py --input a.jsonl.gz --tokenizer DIR --out-prefix corpus/a
"""

import argparse
import itertools
import sys
from pathlib import Path

from r1train.data.corpus import write_corpus
from r1train.data.documents import documents
from r1train.data.tokenizer import Tokenizer
from r1train.errors import R1TrainError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, help=".txt or .jsonl files (.gz, .xz), or builtin:NAME")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out-prefix", type=Path, required=True, help="PREFIX.bin and PREFIX.idx are written")
    args = parser.parse_args()
    try:
        tokenizer = Tokenizer.load(args.tokenizer)
        texts = itertools.chain.from_iterable(map(documents, args.input))
        size = write_corpus(texts, tokenizer, args.out_prefix)
    except R1TrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{args.out_prefix}: {size.documents} documents, {size.tokens} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
