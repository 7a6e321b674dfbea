"""torchrun that ends with the process that started it (python -m r1train.dist.torchrun, arguments as torchrun's)."""

import os
import sys

from r1train.dist.parent import child_environment, end_with_parent

if __name__ == "__main__":
    # First, before torch is imported, which takes a second: an orphan of that second would start the whole stage.
    end_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main  # noqa: PLC0415

    os.environ.update(child_environment())
    try:
        main()
    except ChildFailedError as error:
        # What went wrong stands above, in that rank's own words; a traceback of torchrun only hides it.
        rank, failure = error.get_first_failure()
        print(f"rank {rank} failed first, with exit code {failure.exitcode}", file=sys.stderr, flush=True)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
