"""Optimizer state, gradient buffers and reference policy in host memory while a rollout would be drawn."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu1

WORKER = Path(__file__).parent / "worker" / "offload.py"
# Bytes per parameter that leave the GPU: fp32 gradients, and masters (with bf16 moments only the 16 bits that the
# weights lack; with fp32 weights none) and two moments.
FREED = {"bf16": 4 + 2 + 2 * 2, "fp32_moments": 4 + 4 + 2 * 4, "fp32": 4 + 2 * 4}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    import torch

    out = tmp_path_factory.mktemp("offload") / "out.pt"
    done = subprocess.run(
        [sys.executable, str(WORKER), str(out)], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize("name", FREED)
def test_memory_is_free_inside_and_taken_again_afterwards(outputs: dict, name: str):
    found = outputs[name]
    assert found["freed"] >= FREED[name] * found["parameters"]
    # The allocator rounds sizes up; nothing else comes or goes.
    assert found["back"] == pytest.approx(found["freed"], rel=0.02)
    assert found["pinned"]


@pytest.mark.parametrize("name", FREED)
def test_weights_stay_and_all_else_comes_back_bit_for_bit(outputs: dict, name: str):
    found = outputs[name]
    assert found["addresses_stay"], "CUDA graphs of the engine hold them"
    assert len(found["contents_stay"]) > 50 and all(found["contents_stay"])
    assert len(set(found["forwards"])) == 1


@pytest.mark.parametrize("name", FREED)
def test_steps_are_the_same_numbers(outputs: dict, name: str):
    """Bit for bit where two runs that move nothing are; a GPU may add in another order, then within what that makes."""
    found = outputs[name]
    if found["plain"] == found["again"]:
        assert found["steps"] == found["plain"]
    for ours, theirs in zip(found["steps"], found["plain"], strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3)
    losses = [loss for loss, _ in found["steps"]]
    assert len(set(losses)) == 3


def test_reference_is_on_the_gpu_for_its_passes_only(outputs: dict):
    found = outputs["reference"]
    assert found["asleep"] < 0.05 * found["bytes"]  # its buffers
    assert found["awake"] >= found["bytes"]
    (old, old_moved, policy), (new, new_moved, same_policy) = found["forwards"]
    assert old == old_moved != policy
    assert new == new_moved == same_policy
