"""Corpora and runs stay out of git and out of the image's build context; the package's own folder `data` does not."""

import shutil
import subprocess

import pytest


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_corpora_and_runs_are_not_committed(repo):
    names = ["data/v3/corpus/web.bin", "runs/tiny/x", "r1train/data/corpus.py", "tests/unit/data/conftest.py"]
    command = ["git", "-C", str(repo), "check-ignore", "--no-index", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git tree")
    assert done.stdout.split() == ["data/v3/corpus/web.bin", "runs/tiny/x"]


def test_corpora_and_runs_are_not_sent_to_docker(repo):
    """A pattern without **/ is of the context's root only."""
    patterns = (repo / ".dockerignore").read_text().split()
    assert {"data", "runs"} <= set(patterns) and "**/data" not in patterns
