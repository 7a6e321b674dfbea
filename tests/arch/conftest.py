"""What the architecture tests look at: our Python files, parsed."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TREES = ("r1train", "tools", "tests")


@dataclass(frozen=True)
class Source:
    """One Python file: path relative to the repository, its text and its syntax tree."""

    path: Path
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)

    @property
    def module(self) -> str:
        """Dotted name, packages without `.__init__`."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")


def read_sources(root: Path) -> list[Source]:
    """Every .py file below r1train/, tools/ and tests/ of root."""
    paths = sorted(path for tree in TREES for path in (root / tree).rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return [Source(path.relative_to(root), text, ast.parse(text, str(path))) for path, text in texts.items()]


@pytest.fixture(scope="session")
def sources(repo: Path) -> list[Source]:
    found = read_sources(repo)
    assert len([source for source in found if source.path.parts[0] == "r1train"]) > 5, "r1train was not found"
    return found


@pytest.fixture
def planted(tmp_path: Path):
    """planted({"r1train/log/x.py": "import os"}) -> sources of a tree with violations that a check must find."""

    def plant(files: dict[str, str]) -> list[Source]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return read_sources(tmp_path)

    return plant
