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
    "stage.steps=4",
    "stage.seq_length=64",
    "stage.batch_size=8",
    "stage.micro_batch_size=4",
    "stage.save_every_steps=4",
    "lr.learning_rate={start: 1e-3, segments: []}",
    # 4 sequences, then 4 + 4 * 256 / 448 = 6.3 and 8, in fours: 8 and 8.
    "lr.batch_size={unit: tokens, start: 4, segments: [{until: 448, shape: linear, to: 8}]}",
    "lr.batch_multiple=4",
    "lr.bias_rate={unit: steps, start: 0.1, segments: [{until: 1, shape: constant, to: 0.1}, "
    "{until: 2, shape: constant, to: 0.02}, {until: 4, shape: constant, to: 0.0}]}",
)


def python(*command: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """first: one step, for its weights; hf: those weights; pretrain: our four steps; reference: the tool's.

    resolved.yaml is one of an older version, with a key that is gone by now.
    """
    out = tmp_path_factory.mktemp("reference")
    python(WORKER, out, *OVERRIDES)
    python(repo / "tools/export_hf.py", "--ckpt", out / "first", "--out", out / "hf", "--dtype", "fp32")
    resolved = out / "pretrain" / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("\noptim:\n", "\noptim:\n  distributed: true\n"))
    assert "distributed: true" in resolved.read_text()
    run = "--run", out / "pretrain", "--out", out / "reference", "--weights", out / "hf", "--micro-batch-size", 8
    python(repo / "tools/reference_pretrain.py", *run)
    return out


def test_four_steps_are_ours(folder: Path):
    """Loss, gradient norm and balance loss, the bias update (by its effect on later steps), AdamW, clip, the ramp."""
    ours, reference = (read_metrics(folder / name / "metrics.jsonl") for name in ("pretrain", "reference"))
    print([(a["loss"], b["loss"], a["grad_norm"], b["grad_norm"]) for a, b in zip(ours, reference, strict=True)])
    assert [row["tokens"] for row in reference] == [row["tokens"] for row in ours] == [256, 768, 1280, 1792]
    assert reference[0]["loss"] == pytest.approx(ours[0]["loss"], abs=1e-5)
    assert reference[0]["grad_norm"] == pytest.approx(ours[0]["grad_norm"], rel=1e-4)
    for row, expected in zip(reference, ours, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert row["balance/sequence_loss"] == pytest.approx(expected["balance/sequence_loss"], rel=1e-4)
        assert row["learning_rate"] == expected["learning_rate"] == 1e-3
    assert reference[0]["balance/sequence_loss"] > 1.0  # 1 is perfect balance
    for rows in (ours, reference):
        assert [row["sequences"] for row in rows] == [4, 8, 8, 8]
        assert [row["bias_rate"] for row in rows] == [0.1, 0.1, 0.02, 0.0]


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
    assert summary["steps"] == 4


def test_the_run_without_its_parents_weights_is_refused(folder: Path, repo: Path, tmp_path: Path):
    said = python(repo / "tools/reference_pretrain.py", "--run", folder / "pretrain", "--out", tmp_path / "x", code=2)
    assert "--weights has to name an export" in said
    assert not (tmp_path / "x").exists()
