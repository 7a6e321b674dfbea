"""Runs the checks of several layouts in one launch: torchrun --nproc-per-node N main.py OUT PART[,PART] LAYOUT[,LAYOUT]

Every rank writes OUT/PART.LAYOUT.RANK.pt for the test to compare.
"""

import importlib
import sys
import time
from pathlib import Path

import torch
from tiny import LAYOUTS, config

from r1train.dist.init import close_processes, init_processes, make_groups, select_device


def main(out: Path, parts: list[str], layouts: list[str]) -> None:
    cluster = config(layouts[0]).cluster
    device = select_device(cluster)
    init_processes(device, LAYOUTS[layouts[0]], cluster)
    from megatron.core import parallel_state

    from r1train.dist.seed import seed_all

    for index, layout in enumerate(layouts):
        if index:
            parallel_state.destroy_model_parallel()
            make_groups(device, LAYOUTS[layout], cluster)
        seed_all(1)
        for part in parts:
            start = time.perf_counter()
            module = importlib.import_module(part)
            if layout not in module.LAYOUTS:
                continue
            result = module.run(layout, device, out)
            torch.save(result, out / f"{part}.{layout}.{torch.distributed.get_rank()}.pt")
            print(f"{part} {layout}: {time.perf_counter() - start:.1f} s", flush=True)
    close_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","))
