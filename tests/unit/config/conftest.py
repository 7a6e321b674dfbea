"""A valid config of every stage to start from, and files for the rules that look at files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from r1train.config.load import load_config
from r1train.errors import ConfigError, Problem

BASE = ["experiment=tiny"]


@pytest.fixture
def problems() -> Callable[..., dict[str, Problem]]:
    """problems("stage=grpo", "key=value") -> problems by key (two at one key are joined); {} for a good config."""

    def run(*overrides: str, check_files: bool = False) -> dict[str, Problem]:
        try:
            load_config([*BASE, *overrides], check_files=check_files)
        except ConfigError as error:
            found: dict[str, Problem] = {}
            for problem in error.problems:
                if problem.key in found:
                    problem = replace(problem, what=f"{found[problem.key].what}; {problem.what}")
                found[problem.key] = problem
            return found
        return {}

    return run


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A root as the prepare and pretrain stages leave it: files of the right names, and a finished checkpoint."""
    data = tmp_path / "data"
    for name in ("tokenizer", "corpus", "prompts"):
        (data / name).mkdir(parents=True)
    vocab = {f"t{index}": index for index in range(512)}
    tokenizer = {"model": {"vocab": vocab}, "added_tokens": [{"content": "t0"}]}
    (data / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("text", "gsm8k", "worked"):
        for ending in ("bin", "idx"):
            (data / "corpus" / f"{name}.{ending}").write_text("x")
    for name in ("cold_start.jsonl", "prompts/train.jsonl", "prompts/heldout.jsonl"):
        (data / name).write_text("{}\n")
    done = tmp_path / "pretrain" / "checkpoints" / "step_00000150" / "_DONE"
    done.parent.mkdir(parents=True)
    done.touch()
    return tmp_path
