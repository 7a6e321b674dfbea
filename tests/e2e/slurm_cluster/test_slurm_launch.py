"""slurm/*: rendezvous, ranks, logs, requeue and chains on a real two-node Slurm, with stand-ins for the stages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.e2e]

REDUCE = """
import json, os, pathlib, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([10.0 ** dist.get_rank()])
dist.all_reduce(total)
seen = {"total": total.item(), "world": dist.get_world_size(), "node": os.environ["SLURMD_NODENAME"]}
seen |= {"port": os.environ["MASTER_PORT"], "argument": sys.argv[2]}
pathlib.Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(seen))
print("rank", dist.get_rank(), "is done")
dist.destroy_process_group()
"""

# Stands in for the r1train package: `python -m r1train` in a home of its own. Each step's name says what it does.
STAND_IN = """
import os, pathlib, signal, sys, time

values = dict(argument.split("=", 1) for argument in sys.argv[1:])
if "mode" in values:
    for step, stage, own in (
        ("010_good", "prepare", []),
        ("020_bad", "evaluate", [f"stage.init_from={values['root']}/010_good", "note=two words"]),
        ("030_never", "grpo", [f"stage.init_from={values['root']}/020_bad"]),
    ):
        users = [argument for argument in sys.argv[1:] if argument != "mode=steps"]
        print(step, stage, f"stage={stage}", f"step={step}", *own, *users, sep="\\t")
    sys.exit(0)
run = pathlib.Path(values["root"], values["step"])
rank, attempt = os.environ["RANK"], os.environ.get("SLURM_RESTART_COUNT", "0")
if values["step"] == "020_bad":
    sys.exit("note is " + values["note"])
if values["step"] == "040_deaf" and attempt == "0":
    (run / f"ready.{rank}").touch()
    time.sleep(600)
if values["step"] == "030_slow" and attempt == "0":
    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
    (run / f"ready.{rank}").touch()
    while not told:
        time.sleep(0.1)
    time.sleep(3)  # a save takes its time: nothing may end this process meanwhile
    (run / f"saved.{rank}").touch()
    sys.exit(0)
(run / f"done.{rank}.{attempt}").write_text(" ".join(sys.argv[1:]))
if rank == "0":
    (run / "result.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, repo: Path) -> Path:
    """A checkout in small: the real slurm/ folder beside a stand-in for the r1train package."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(repo / "slurm", home / "slurm")
    (home / "r1train").mkdir()
    (home / "r1train" / "__main__.py").write_text(STAND_IN)
    return home


def settings(home: Path) -> dict[str, str]:
    return {"R1TRAIN_PYTHON": sys.executable, "R1TRAIN_HOME": str(home), "R1TRAIN_RUN_ROOT": str(home / "runs")}


def test_cluster_has_two_idle_nodes(cluster):
    assert cluster.idle_nodes() == ["sim1", "sim2"]


def test_ranks_follow_the_node_order_and_add_up(cluster, repo, tmp_path):
    script = tmp_path / "reduce.py"
    script.write_text(REDUCE)
    wrapped = f"srun slurm/run_node.sh {script} {tmp_path} 'two words'"
    job_id = cluster.run(
        *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/job.out"),
        f"--wrap={wrapped}",
        cwd=repo,
        R1TRAIN_PYTHON=sys.executable,
        R1TRAIN_PROCESSES_PER_NODE="2",
        R1TRAIN_LOG_DIR=str(tmp_path / "logs"),
    )
    job = cluster.wait(job_id, timeout_s=180)
    output = (tmp_path / "job.out").read_text()
    assert job["JobState"] == "COMPLETED", output
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert [one["total"] for one in seen] == [1111.0] * 4
    assert [one["node"] for one in seen] == ["sim1", "sim1", "sim2", "sim2"]
    assert {one["world"] for one in seen} == {4}
    assert {one["argument"] for one in seen} == {"two words"}
    assert {one["port"] for one in seen} == {str(20000 + int(job_id))}
    # every process has its own file; only rank 0 also writes to the job's output
    logs = sorted((tmp_path / "logs" / f"job{job_id}-try0").glob("node*/**/stdout.log"))
    assert sorted(log.read_text().strip() for log in logs) == [f"rank {rank} is done" for rank in range(4)]
    assert [rank for rank in range(4) if f"rank {rank} is done" in output] == [0]


def submit_and_send_usr1(cluster, home: Path, step: str, **env: str) -> tuple[dict[str, str], Path]:
    """The job's fields after it was told to stop in its first attempt, and its run folder."""
    run = home / "runs" / "tiny" / step
    run.mkdir(parents=True)
    command = ("sbatch", "--parsable", "--nodes=2", "slurm/grpo.sbatch", "experiment=tiny", f"step={step}")
    job_id = cluster.run(*command, cwd=home, **settings(home), **env)
    cluster.wait_for("both ranks to run", lambda: (run / "ready.0").exists() and (run / "ready.1").exists())
    cluster.run("scancel", "--batch", "--signal=USR1", job_id)  # what --signal=B:USR1@120 does before the time limit
    return cluster.wait(job_id, timeout_s=180), run


def test_usr1_saves_requeues_and_the_second_attempt_finishes(cluster, home):
    job, run = submit_and_send_usr1(cluster, home, "030_slow")
    output = Path(job["StdOut"]).read_text()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), output
    assert sorted(path.name for path in run.glob("[sd]*.?*")) == ["done.0.1", "done.1.1", "saved.0", "saved.1"]
    assert "srun: error" not in output  # torchrun itself outlives the signal
    overrides = f"experiment=tiny step=030_slow stage=grpo step=030_slow root={home}/runs/tiny"
    assert (run / "done.1.1").read_text() == overrides
    assert sorted(path.name for path in (run / "logs").iterdir()) == [f"job{job['JobId']}-try{n}" for n in (0, 1)]
    assert output.count("launch.sh: USR1") == 1  # the first attempt's lines are kept


def test_a_stage_that_does_not_stop_is_requeued_all_the_same(cluster, home):
    job, run = submit_and_send_usr1(cluster, home, "040_deaf", R1TRAIN_SAVE_SECONDS="1")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), Path(job["StdOut"]).read_text()
    assert sorted(path.name for path in run.glob("done.*")) == ["done.0.1", "done.1.1"]


def test_schedule_stops_at_the_first_failure(cluster, home):
    submitted = cluster.run(
        *("slurm/schedule.sh", "--nodes=2", "schedule=r1", "experiment=tiny"), cwd=home, **settings(home)
    )
    steps = dict(line.split("\t") for line in submitted.splitlines())
    assert list(steps) == ["010_good", "020_bad", "030_never"]
    jobs = {step: cluster.wait(job_id, timeout_s=180) for step, job_id in steps.items()}
    assert {step: job["JobState"] for step, job in jobs.items()} == {
        "010_good": "COMPLETED",
        "020_bad": "FAILED",
        "030_never": "CANCELLED",
    }
    assert [job["JobName"] for job in jobs.values()] == list(steps)
    assert "note is two words" in Path(jobs["020_bad"]["StdOut"]).read_text()
    assert (home / "runs/tiny/010_good/result.json").exists()
    assert not (home / "runs/tiny/030_never").exists()


def test_schedule_dry_run_prints_the_chain_and_submits_nothing(repo, home, tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **settings(home)}
    command = [str(repo / "slurm/schedule.sh"), "--dry-run", "--nodes=256", "schedule=r1", "experiment=v3"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    common = f"schedule=r1 experiment=v3 root={home}/runs/v3"
    chain = "sbatch --parsable --job-name={} --dependency=afterok:JOB_{} --kill-on-invalid-dep=yes --nodes=256 "
    assert [line.strip() for line in result.stdout.splitlines()] == [
        "sbatch --parsable --job-name=010_good --nodes=256 --nodes=1 slurm/prepare.sbatch"
        f" stage=prepare step=010_good {common}",
        chain.format("020_bad", "010_good") + "slurm/eval.sbatch stage=evaluate step=020_bad"
        f" stage.init_from={home}/runs/v3/010_good note=two\\ words {common}",
        chain.format("030_never", "020_bad") + "slurm/grpo.sbatch stage=grpo step=030_never"
        f" stage.init_from={home}/runs/v3/020_bad {common}",
    ]


def test_a_container_gets_the_first_host_and_its_own_python(home, tmp_path):
    """pyxis is a plugin of srun; a stand-in for srun shows what launch.sh asks of it."""
    (tmp_path / "srun").write_text('#!/bin/sh\nenv > "$SEEN.env"\nprintf "%s\\n" "$@" > "$SEEN"\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'gpu007\\ngpu012\\n'\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    seen = tmp_path / "seen"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[007,012]", "SLURM_JOB_NUM_NODES": "2"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(seen), "R1TRAIN_HOME": str(home), **slurm}
    environment |= {"R1TRAIN_CONTAINER_IMAGE": "r1train.sqsh", "R1TRAIN_RUN_ROOT": "/scratch/runs"}
    subprocess.run([home / "slurm/launch.sh", "sft", "experiment=v3", "step=020"], env=environment, check=True)
    arguments = seen.read_text().splitlines()
    assert "--container-image=r1train.sqsh" in arguments
    assert f"--container-mounts={home}:{home},/scratch/runs:/scratch/runs" in arguments
    overrides = ["experiment=v3", "step=020", "stage=sft", "step=020", "root=/scratch/runs/v3"]
    assert arguments[-7:] == ["-m", "r1train", *overrides]
    values = dict(line.split("=", 1) for line in Path(f"{seen}.env").read_text().splitlines() if "=" in line)
    assert (values["MASTER_ADDR"], values["R1TRAIN_TASK_PYTHON"]) == ("gpu007", "python")
    assert values["R1TRAIN_LOG_DIR"] == "/scratch/runs/v3/020/logs"
    assert "SBATCH_ACCOUNT" not in values  # empty in cluster.env: Slurm's own default holds


def test_a_job_without_an_experiment_says_so(cluster, home):
    job_id = cluster.run("sbatch", "--parsable", "slurm/pretrain.sbatch", cwd=home, **settings(home))
    job = cluster.wait(job_id, timeout_s=120)
    assert job["JobState"] == "FAILED"
    assert "r1train: experiment is missing, e.g. experiment=tiny" in Path(job["StdOut"]).read_text()
