"""How many GPUs a process that is started here will see, asked without importing torch into this one."""

import subprocess
import sys

from r1train.errors import EnvironmentProblem


def count_gpus() -> int:
    """What torch counts, in a process of its own (two seconds): drivers, CUDA_VISIBLE_DEVICES and MIG as it sees them.

    Raises EnvironmentProblem where torch cannot be imported.
    """
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise EnvironmentProblem(f"torch cannot count GPUs: {''.join(last)}. Fix: make setup")
    return int(done.stdout.split()[-1])
