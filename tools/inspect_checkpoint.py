"""List a checkpoint: tensors, shapes, types, step, marker, parameters; a run folder, a step folder or Hugging Face's.

python tools/inspect_checkpoint.py FOLDER [--names experts.0.]
"""

import argparse
import sys
from pathlib import Path

from r1train.convert.report import describe, list_folder
from r1train.errors import exit_code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", help="list only tensors whose name holds this; the counts stay those of all")
    args = parser.parse_args()
    return exit_code(lambda: print(describe(*list_folder(args.folder), pattern=args.names)))


if __name__ == "__main__":
    sys.exit(main())
