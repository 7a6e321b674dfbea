"""The gap of two data-parallel ranks, of which one has a NaN: torchrun --nproc-per-node 2 nan_gap.py OUT"""

import json
import sys
from pathlib import Path

import torch
from tiny import LAYOUTS, config

from r1train.dist.init import close_processes, init_processes, select_device


def main(out: Path) -> None:
    cluster = config("dp2").cluster
    device = select_device(cluster)
    init_processes(device, LAYOUTS["dp2"], cluster)
    from megatron.core import parallel_state

    from r1train.rl.mismatch import LogprobGap

    found = []
    for bad in (0, 1, None):
        gap = LogprobGap("cpu")
        engine = torch.tensor([[-1.0, -2.0, float("nan") if torch.distributed.get_rank() == bad else -3.0]])
        gap.add(engine, torch.tensor([[-1.5, -2.0, -3.0]]), torch.ones(1, 3))
        found.append(gap.reduce(parallel_state.get_data_parallel_group())["logprob_gap_max"])
    (out / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    close_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
