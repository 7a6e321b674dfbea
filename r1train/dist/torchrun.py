"""torchrun that ends with the process that started it (python -m r1train.dist.torchrun, arguments as torchrun's)."""

import os

from r1train.dist.parent import child_environment, end_with_parent

if __name__ == "__main__":
    # First, before torch is imported, which takes a second: an orphan of that second would start the whole stage.
    end_with_parent()
    from torch.distributed.run import main  # noqa: PLC0415

    os.environ.update(child_environment())
    main()
