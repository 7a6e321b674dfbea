"""Body of a forked rank: what `python SCRIPT ARGUMENT...` runs, in a process that ends with the server of the forks."""

import runpy
import sys
from pathlib import Path

from r1train.dist.parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
