"""slurm/*: commands in the headers fit the configs, conversions run in the image, CUDA's queues are the layout's."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from r1train.config.load import load_config

SLURM = Path(__file__).resolve().parents[2] / "slurm"
STAGE = re.compile(r'launch(?:_part)?\.sh" (\w+) "\$@"')


def commands() -> list[tuple[str, str, str]]:
    """(script, stage, words) of every `#   sbatch` line of a stage's script, its continued lines joined."""
    found = []
    for script in sorted(SLURM.glob("*.sbatch")):
        text = script.read_text()
        if (stage := STAGE.search(text)) is None:
            continue
        joined = text.replace(" \\\n#       ", " ")
        lines = re.findall(rf"^#   sbatch (?:\[?--\S+ )?slurm/{script.name} (.*)$", joined, re.MULTILINE)
        found += [(script.name, stage[1], line.removesuffix(" [key=value ...]")) for line in lines]
    return found


def test_every_stage_has_a_command():
    assert {script for script, _, _ in commands()} == {path.name for path in SLURM.glob("*.sbatch")} - {
        "convert.sbatch"
    }


@pytest.mark.parametrize(("script", "stage", "words"), commands())
def test_the_command_in_the_header_is_a_whole_config(script, stage, words):
    cfg = load_config([*words.split(), f"stage={stage}"], check_files=False)
    assert cfg.stage.name == stage


def sourced(command: str, **variables: str) -> str:
    env = {"PATH": os.environ["PATH"], "R1TRAIN_HOME": str(SLURM.parent), **variables}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


@pytest.mark.parametrize("image", ["/images/r1train.sqsh", ""])
def test_a_conversion_runs_where_a_stage_does(tmp_path, image):
    """In the image, whose `python` it then is; without one, on the node."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "R1TRAIN_RUN_ROOT": "/runs", "R1TRAIN_PYTHON": "/venv/python"}
    said = sourced(f"bash {SLURM}/convert.sbatch import_hf.py --hf DIR", R1TRAIN_CONTAINER_IMAGE=image, **path).split()
    home = SLURM.parent
    mounts = f"--container-mounts={home}:{home},/runs:/runs"
    container = [f"--container-image={image}", mounts, "--no-container-mount-home", f"--container-workdir={home}"]
    python = "python" if image else "/venv/python"
    expected = ["--cpu-bind=none", *(container if image else []), python, "tools/import_hf.py", "--hf", "DIR"]
    assert said == expected


def test_dry_run_moves_nothing():
    command = f"{SLURM}/schedule.sh --dry-run experiment=tiny stale=rerun || echo $?"
    assert sourced(f"{{ {command}; }} 2>&1").splitlines() == [
        "r1train: --dry-run changes nothing, and stale=rerun moves run folders aside: leave one of them out",
        "2",
    ]


@pytest.mark.parametrize(("given", "seen"), [({}, "unset"), ({"CUDA_DEVICE_MAX_CONNECTIONS": "4"}, "4")])
def test_cuda_queues_are_the_layouts_unless_the_environment_says(given, seen):
    said = sourced(f"source {SLURM}/cluster.env; env | grep MAX_CONNECTIONS || echo =unset", **given)
    assert said.strip().split("=")[-1] == seen
