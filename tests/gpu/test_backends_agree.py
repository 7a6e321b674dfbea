"""Transformer Engine's layers and our local ones: the same checkpoint names, logits and greedy tokens, in fp32."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu1

WORKER = Path(__file__).parent / "worker" / "backend.py"
MODELS = ("windows", "v2_lite", "moonlight", "v3", "fused_rope", "llama", "qwen")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """(local on CPU, Transformer Engine on the GPU with the same weights); the run asserts that the names are equal."""
    import torch

    folder = tmp_path_factory.mktemp("backends")
    for arguments in (["cpu", folder / "cpu.pt"], ["cuda", folder / "cuda.pt", folder / "cpu.pt"]):
        command = [sys.executable, str(WORKER), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return tuple(torch.load(folder / f"{kind}.pt", weights_only=False) for kind in ("cpu", "cuda"))


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens(outputs: tuple[dict, dict], name: str):
    import torch

    cpu, cuda = outputs[0][name], outputs[1][name]
    assert cpu["logits"].std() > 0.1
    # Both multiply in fp32, but a GPU may do so with TF32's 10 bits of mantissa.
    torch.testing.assert_close(cuda["logits"], cpu["logits"], atol=2e-2, rtol=2e-2)
    assert cuda["tokens"] == cpu["tokens"]
