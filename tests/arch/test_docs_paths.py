"""A path that README.md or docs/*.md names in backticks exists."""

import re
from pathlib import Path

import pytest

PATH = re.compile(r"`([A-Za-z0-9_.][\w./-]*)`")
TOP = ("r1train", "conf", "slurm", "tools", "tests", "docker", "docs", ".ci")  # what makes `a/b` a path of ours
TOP_FILES = ("Makefile", "README.md", "pyproject.toml", "constraints.txt", ".gitignore", ".dockerignore")


def missing_paths(text: str, root: Path) -> list[str]:
    """Backticked words that look like paths of the repository (below TOP, or one of TOP_FILES) and are not there."""
    named = [word.rstrip("/") for word in PATH.findall(text)]
    paths = [word for word in named if word in TOP_FILES or ("/" in word and word.split("/")[0] in TOP)]
    return [word for word in paths if not (root / word).exists()]


def test_documented_paths_exist(repo):
    pages = sorted(path for path in [repo / "README.md", *repo.glob("docs/*.md")] if path.exists())
    if not pages:
        pytest.skip("README.md is not written yet")
    wrong = {str(page.relative_to(repo)): missing_paths(page.read_text(), repo) for page in pages}
    assert {page: paths for page, paths in wrong.items() if paths} == {}


def test_planted_path_is_found(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/there.py").write_text("")
    text = "`tools/there.py`, `tools/gone.py`, `conf/x.yaml`, `a/b`, `tools/`, `make test`, `Makefile`, tools/bare.py"
    assert missing_paths(text, tmp_path) == ["tools/gone.py", "conf/x.yaml", "Makefile"]
