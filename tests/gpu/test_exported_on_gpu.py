"""Models trained here, exported: transformers and vLLM answer as our engine does.

transformers in fp32 token for token. vLLM in bf16, as it is used, so an answer may leave ours where two tokens are
almost equally likely: most answers have to be the same, and every one has to begin with the same token (31 of 32 were
the same on an H200).
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu1

WORKER = Path(__file__).parent / "worker" / "greedy.py"
EXPORT = Path(__file__).parents[2] / "tools" / "export_hf.py"
HAS_VLLM = importlib.util.find_spec("vllm") is not None
SHORT = {
    "tiny_gpu": ["per_stage.pretrain.stage.steps=60", "per_stage.cold_start.stage.steps=20"],
    "mini_grpo": [
        "model.num_layers=12",
        "per_stage.pretrain.stage.steps=250",
        "per_stage.cold_start.stage.steps=20",
        "per_stage.sft.evaluate_after=false",
    ],
}


@dataclass(frozen=True)
class Exported:
    """hf: the exported folder; native: prompts and greedy tokens of our engine, in a file and read."""

    hf: Path
    native: Path
    answers: list[list[int]]


@pytest.fixture(scope="module", params=SHORT)
def exported(
    request: pytest.FixtureRequest, run_steps: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    experiment, folder = request.param, tmp_path_factory.mktemp("exported")
    overrides = [f"experiment={experiment}", *SHORT[experiment]]
    root = run_steps(("prepare", "pretrain", "cold_start"), overrides)
    run = root / "cold_start"
    overrides = [word for word in overrides if not word.startswith("per_stage.")]
    call(WORKER, "native", run, folder / "native.json", *overrides, "stage=pretrain", f"root={root}")
    call(EXPORT, "--ckpt", run, "--out", folder / "hf", "--tokenizer", root / "data" / "tokenizer")
    answers = json.loads((folder / "native.json").read_text())["tokens"]
    assert len(answers) == 32
    # Answers to different sums that were all the same would agree with anything.
    assert len({tuple(answer) for answer in answers}) > 1
    return Exported(folder / "hf", folder / "native.json", answers)


def call(*command: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_transformers_answers_the_same(exported: Exported, tmp_path: Path):
    call(WORKER, "transformers", exported.hf, exported.native, tmp_path / "answers.json")
    assert json.loads((tmp_path / "answers.json").read_text()) == exported.answers


@pytest.mark.parametrize("exported", ["mini_grpo"], indirect=True)
@pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed")
def test_vllm_answers_the_same(exported: Exported, tmp_path: Path):
    call(WORKER, "vllm", exported.hf, exported.native, tmp_path / "answers.json")
    found = json.loads((tmp_path / "answers.json").read_text())
    pairs = list(zip(found, exported.answers, strict=True))
    assert [ours[0] for _, ours in pairs] == [theirs[0] for theirs, _ in pairs]
    assert sum(theirs == ours for theirs, ours in pairs) >= 24
