"""Hugging Face folder -> run folder with one checkpoint that trains in any layout.

python tools/import_hf.py --hf DIR --out RUN [--max-memory 8G] [--workers 2] [--verify] [--dry-run]
Then: stage.init_from=RUN, with the model of RUN/model.yaml. docs/conversion.md says more.
"""

import argparse
import sys
from pathlib import Path

from r1train.convert.import_plan import Options
from r1train.convert.importer import import_checkpoint
from r1train.convert.report import DTYPES, import_estimate, parse_size
from r1train.errors import exit_code


def run(args: argparse.Namespace, options: Options) -> None:
    if args.dry_run:
        print(import_estimate(args.hf, args.out, options))
    else:
        print(f"imported to {import_checkpoint(args.hf, args.out, options)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors files")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("--dtype", choices=["keep", "bf16", "fp32"], default="keep", help="keep: FP8 becomes bf16")
    parser.add_argument("--drop-mtp", action="store_true", help="leave the MTP layers out")
    parser.add_argument("--max-memory", type=parse_size, default="8G", help="of all processes together, e.g. 4G")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the work")
    parser.add_argument("--verify", action="store_true", help="read everything again and compare with the source")
    parser.add_argument("--dry-run", action="store_true", help="check and estimate; config.json alone is enough")
    args = parser.parse_args()
    options = Options(
        max_memory_bytes=args.max_memory,
        workers=args.workers,
        dtype=None if args.dtype == "keep" else DTYPES[args.dtype],
        drop_mtp=args.drop_mtp,
        verify=args.verify,
    )
    return exit_code(lambda: run(args, options))


if __name__ == "__main__":
    sys.exit(main())
