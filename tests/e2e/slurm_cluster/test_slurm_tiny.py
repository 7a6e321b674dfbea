"""The tiny experiment on two Slurm nodes: schedule.sh runs prepare, pretrain and grpo; each ends with result.json."""

import json
import shlex
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.e2e]

R1_STEPS = ["prepare", "pretrain", "cold_start", "rl1", "reject", "sft", "rl2", "evaluate"]
R1_FILES = ["prepare", "pretrain", "sft", "grpo", "reject", "sft", "grpo", "eval"]
# The beginning of the R1 schedule, RL straight after pre-training, with next to no steps and problems.
SHORT = [
    "schedule.steps=[{id:prepare,stage:prepare,title:prepare},{id:pretrain,stage:pretrain,title:pretrain},"
    "{id:rl1,stage:grpo,title:RL,init_from:pretrain}]",
    "per_stage.pretrain.stage.steps=3",
    "per_stage.pretrain.stage.batch_size=4",
    "per_stage.pretrain.stage.micro_batch_size=2",
    "per_stage.grpo.stage.steps=2",
    "per_stage.grpo.stage.prompts_per_step=4",
    "per_stage.grpo.stage.samples_per_prompt=2",
    "per_stage.grpo.stage.minibatches_per_step=1",
    "per_stage.grpo.evaluate_after=false",
    "rollout.max_response_tokens=16",
]


def test_dry_run_prints_the_r1_chain(cluster, repo: Path, tmp_path: Path):
    root = tmp_path / "tiny"
    command = ("slurm/schedule.sh", "--dry-run", "--nodes=2", "schedule=r1", "experiment=tiny", "cluster=slurm_sim")
    output = cluster.run(*command, cwd=repo, R1TRAIN_PYTHON=sys.executable, R1TRAIN_RUN_ROOT=str(tmp_path))
    lines = [shlex.split(line) for line in output.splitlines()]
    assert [next(word for word in line if word.endswith(".sbatch")) for line in lines] == [
        f"slurm/{name}.sbatch" for name in R1_FILES
    ]
    assert [line[2] for line in lines] == [f"--job-name={step}" for step in R1_STEPS]
    assert not any(word.startswith("--dependency") for word in lines[0])
    assert [line[3] for line in lines[1:]] == [f"--dependency=afterok:JOB_{step}" for step in R1_STEPS[:-1]]
    assert f'stage.init_from="{root}/cold_start"' in lines[3]
    assert f'stage.dataset="{root}/reject/sft.jsonl"' in lines[5]
    assert all(
        {f"root={root}", "cluster=slurm_sim", f"step={step}"} <= set(line)
        for step, line in zip(R1_STEPS, lines, strict=True)
    )
    assert not root.exists()


def test_tiny_runs_through_slurm(cluster, repo: Path, tmp_path: Path):
    submitted = cluster.run(
        *("slurm/schedule.sh", "--nodes=2", f"--output={tmp_path}/%x.out"),
        *("schedule=r1", "experiment=tiny", "cluster=slurm_sim", *SHORT),
        cwd=repo,
        R1TRAIN_PYTHON=sys.executable,
        R1TRAIN_RUN_ROOT=str(tmp_path),
    )
    jobs = dict(line.split("\t") for line in submitted.splitlines())
    assert list(jobs) == ["prepare", "pretrain", "rl1"]
    for step, job_id in jobs.items():
        job = cluster.wait(job_id, timeout_s=240)
        assert job["JobState"] == "COMPLETED", f"{step}: {job['JobState']}\n{Path(job['StdOut']).read_text()[-4000:]}"
        assert job["NumNodes"] == ("1" if step == "prepare" else "2")
    rows = {step: json.loads((tmp_path / "tiny" / step / "result.json").read_text()) for step in jobs}
    assert {step: (row["stage"], row["steps"]) for step, row in rows.items()} == {
        "prepare": ("prepare", None),
        "pretrain": ("pretrain", 3),
        "rl1": ("grpo", 2),
    }
    logs = tmp_path / "tiny" / "pretrain" / "logs" / f"job{jobs['pretrain']}-try0"
    assert sorted(path.name for path in logs.iterdir()) == ["node0", "node1"]
    metrics = (tmp_path / "tiny" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]
