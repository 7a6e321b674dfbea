"""tools/reference_pretrain.py: from our exported weights, transformers and torch's AdamW take our steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from r1train.log.metrics import read_metrics

WORKER = Path(__file__).parent / "worker" / "reference.py"
OVERRIDES = (
    "experiment=tiny",
    "parallel=single",
    "cluster.processes_per_node=1",
    "stage=pretrain",
    "model.mtp_depth=0",
    "model.sequence_loss_coef=0.1",
    "data.corpora=[{name: a, source: 'builtin:text', weight: 0.7}, {name: b, source: 'builtin:text', weight: 0.3}]",
    "data.heldout_fraction=0.1",
    "stage.steps=3",
    "stage.seq_length=64",
    "stage.batch_size=8",
    "stage.micro_batch_size=4",
    "stage.save_every_steps=3",
    "lr.learning_rate={start: 1e-3, segments: []}",
    "lr.bias_rate={start: 0.1, segments: []}",
)


def python(*command: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """first: one step, for its weights; hf: those weights; pretrain: our three steps; reference: the tool's."""
    out = tmp_path_factory.mktemp("reference")
    python(WORKER, out, *OVERRIDES)
    python(repo / "tools/export_hf.py", "--ckpt", out / "first", "--out", out / "hf", "--dtype", "fp32")
    run = "--run", out / "pretrain", "--out", out / "reference", "--weights", out / "hf", "--micro-batch-size", 8
    python(repo / "tools/reference_pretrain.py", *run)
    return out


def test_three_steps_are_ours(folder: Path):
    """Loss and gradient norm (balance loss included), the bias update (by its effect on later steps), AdamW, clip."""
    ours, reference = (read_metrics(folder / name / "metrics.jsonl") for name in ("pretrain", "reference"))
    print([(a["loss"], b["loss"], a["grad_norm"], b["grad_norm"]) for a, b in zip(ours, reference, strict=True)])
    assert [row["tokens"] for row in reference] == [row["tokens"] for row in ours] == [512, 1024, 1536]
    assert reference[0]["loss"] == pytest.approx(ours[0]["loss"], abs=1e-5)
    assert reference[0]["grad_norm"] == pytest.approx(ours[0]["grad_norm"], rel=1e-4)
    for row, expected in zip(reference, ours, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert row["learning_rate"] == expected["learning_rate"] == 1e-3
    assert reference[0]["sequence_loss"] > 1.0  # 1 is perfect balance


def test_heldout_loss_is_ours(folder: Path):
    ours, reference = (
        json.loads((folder / name / "eval/perplexity.json").read_text()) for name in ("pretrain", "reference")
    )
    assert set(reference["corpora"]) == {"a", "b"}
    for name, corpus in reference["corpora"].items():
        assert corpus["tokens"] == ours["corpora"][name]["tokens"]
        assert corpus["loss"] == pytest.approx(ours["corpora"][name]["loss"], abs=1e-4)
    summary = json.loads((folder / "reference" / "reference.json").read_text())
    assert summary["heldout_loss"] == reference["loss"]
    assert summary["run_heldout_loss"] == ours["loss"]
    assert summary["steps"] == 3


def test_the_run_without_its_parents_weights_is_refused(folder: Path, repo: Path, tmp_path: Path):
    said = python(repo / "tools/reference_pretrain.py", "--run", folder / "pretrain", "--out", tmp_path / "x", code=2)
    assert "--weights has to name an export" in said
    assert not (tmp_path / "x").exists()
