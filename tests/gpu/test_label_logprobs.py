"""Log-probabilities and entropies of labels as torch.compile makes them for a GPU, against float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu1

WORKER = Path(__file__).parent / "worker" / "label_logprobs.py"


@pytest.mark.parametrize("compiled", [True, False])
def test_values_gradients_and_memory(compiled: bool):
    """bf16 holds 8 bits: a gradient is rounded by up to 2^-8 of itself."""
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "0" if compiled else "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER)], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["logprobs"] < 2e-5 and found["entropies"] < 2e-5, found
    assert found["gradient"] < 2**-8 + 1e-3, found
    # The gradient itself takes 2 bytes per logit, twice while its chunks are joined; fp32 copies would take 4 each.
    assert found["extra_bytes_per_logit"] < (4.5 if compiled else 10.0), found
