"""A schedule on two GPUs with expert parallelism, by the command line: rollouts, grading, evaluation over NCCL."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu2

TOOL = Path(__file__).parents[2] / "tools" / "export_hf.py"
STEPS = (
    "{id: prepare, stage: prepare, title: prepare}",
    "{id: pretrain, stage: pretrain, title: pretrain}",
    "{id: cold_start, stage: sft, title: cold start, init_from: pretrain}",
    "{id: rl1, stage: grpo, title: RL, init_from: cold_start}",
)
OVERRIDES = (
    "experiment=tiny_gpu",
    "cluster=two_gpus",
    "parallel=ep2",
    f"schedule.steps=[{', '.join(STEPS)}]",
    "per_stage.pretrain.stage.steps=60",
    "per_stage.pretrain.stage.save_every_steps=30",
    "per_stage.cold_start.stage.steps=20",
    "per_stage.grpo.stage.steps=4",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_gpus")
    command = [sys.executable, "-m", "r1train", *OVERRIDES, f"root={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_heldout_answer_is_there_once_in_order(root: Path):
    """Each rank generates and grades every other problem; rank 0 gets all rows."""
    asked = [row["id"] for row in lines(root / "data" / "prompts" / "heldout.jsonl")]
    for step in ("cold_start", "rl1"):
        report = json.loads((root / step / "eval" / "chain_sum.json").read_text())
        rows = lines(root / step / "eval" / "samples.jsonl")
        found = [row["prompt"]["id"] for row in rows]
        assert found == [name for name in asked if name in set(found)]
        assert len(found) == report["problems"] >= 200
        correct = sum(score["parts"]["accuracy"] for row in rows for score in row["scores"])
        samples = sum(len(row["scores"]) for row in rows)
        assert report["pass_at_1"] == pytest.approx(correct / samples, abs=1e-9)


def test_engine_and_trainer_agree(root: Path):
    rows = lines(root / "rl1" / "metrics.jsonl")
    assert len(rows) == 4
    assert max(row["logprob_gap_mean"] for row in rows) < 0.02


def test_rl_leaves_the_mtp_layer_alone(root: Path, tmp_path: Path):
    """Its gradients are zero and its weights do not decay, under Transformer Engine's Adam, too."""
    weights = {}
    for step in ("cold_start", "rl1"):
        folder = tmp_path / step
        command = [sys.executable, TOOL, "--ckpt", root / step, "--out", folder, "--dtype", "fp32"]
        command += ["--tokenizer", root / "data" / "tokenizer"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        weights[step] = {
            name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()
        }
    before, after = weights["cold_start"], weights["rl1"]
    layers = 1 + max(int(name.split(".")[2]) for name in before if name.startswith("model.layers."))
    own = [name for name in before if name.startswith(f"model.layers.{layers - 1}.")]
    shared = {"embed_tokens", "shared_head.head"}  # copies of the main model's
    mtp = [name for name in own if not any(part in name for part in shared)]
    assert any("eh_proj" in name for name in mtp)
    assert [name for name in mtp if not before[name].equal(after[name])] == []
    assert not before["model.layers.0.self_attn.o_proj.weight"].equal(after["model.layers.0.self_attn.o_proj.weight"])
