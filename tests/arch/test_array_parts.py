"""slurm/launch_part.sh: which part of an array a job is, and its run folder."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "slurm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """launch_part.sh beside a launch.sh that prints its arguments."""
    for name in ("launch_part.sh", "overrides.sh"):
        shutil.copy(SLURM / name, tmp_path)
    launch = tmp_path / "launch.sh"
    launch.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    launch.chmod(0o755)
    return tmp_path


def launch_part(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    command = ["bash", str(folder / "launch_part.sh"), "reject", "experiment=tiny"]
    env = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_third_job_of_an_array_that_starts_at_3(folder: Path):
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    expected = ["reject", "experiment=tiny", "step=reject/part_0003", "stage.part=3", "stage.parts=4"]
    assert launch_part(folder, **array).stdout.split() == expected


def test_without_an_array_it_is_the_whole_stage(folder: Path):
    assert launch_part(folder).stdout.split() == ["reject", "experiment=tiny"]


def test_missing_first_number_is_named(folder: Path):
    done = launch_part(folder, SLURM_ARRAY_TASK_ID="5")
    assert done.returncode != 0
    assert "SLURM_ARRAY_TASK_MIN: is set by sbatch --array" in done.stderr
