"""Files of a user in the data folder, through the prepare stage: kept; and what a kill between two renames leaves."""

import json
import os
from pathlib import Path

import pytest

from r1train.config.load import load_config
from r1train.errors import DataError
from r1train.stages import data_folder, prepare

CORPUS = "data.corpora=[{name: NAME, source: 'builtin:gsm8k', weight: 1.0}]"
SMALL = [
    CORPUS.replace("NAME", "gsm8k"),
    "data.worked_examples=0",
    "data.tokenizer_vocab_size=320",
    "data.heldout_fraction=0",
]
TASKS = [f"data.tasks.0.{name}={count}" for name, count in (("train", 20), ("heldout", 10), ("cold_start", 10))]
USERS = {"prompts/general.jsonl": "general", "corpus/mine.bin": "tokens", "other.jsonl": "rows"}


def config(folder: Path, *overrides: str):
    start = ["experiment=tiny", "stage=prepare", f"data.dir={folder}", *SMALL, *TASKS]
    return load_config([*start, *overrides])


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("latin-1") for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with files of the user's, before anything was prepared."""
    for name, text in USERS.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    return tmp_path / "data"


def test_the_users_files_survive_and_our_old_ones_go(folder):
    prepare.run(config(folder))
    first = texts(folder)
    prepare.run(config(folder, CORPUS.replace("NAME", "other"), "data.seed=77"))
    second = texts(folder)
    assert {name: second[name] for name in USERS} == USERS
    assert "corpus/gsm8k.bin" in first and "corpus/gsm8k.bin" not in second and "corpus/other.bin" in second
    assert second["prompts/train.jsonl"] != first["prompts/train.jsonl"]
    ours = {"tokenizer/tokenizer.json", "cold_start.jsonl", "prompts/train.jsonl", "prompts/heldout.jsonl"}
    ours |= {f"corpus/other{ending}" for ending in (".bin", ".idx", ".json")}
    assert set(second) == {"_DONE", *ours, *USERS}
    assert set(json.loads(second["_DONE"])["files"]) == ours


@pytest.mark.parametrize(
    "name", ["prompts/train.jsonl", "corpus/gsm8k.bin", "corpus/gsm8k_heldout.bin", "tokenizer/tokenizer.json"]
)
def test_a_users_file_of_a_name_of_ours_is_refused_before_anything_is_built(folder, monkeypatch, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = texts(folder)
    monkeypatch.setattr(prepare, "_build", lambda *_: pytest.fail("hours of work, for nothing"))
    with pytest.raises(DataError, match=rf"nothing was changed:\n  - {name}\nFix: move them away"):
        prepare.run(config(folder))
    assert texts(folder) == before


def test_a_prepared_file_that_was_changed_is_not_overwritten(folder):
    prepare.run(config(folder))
    (folder / "prompts" / "heldout.jsonl").write_text("edited by hand")
    before = texts(folder)
    with pytest.raises(DataError, match="or they were changed since; nothing was changed:\n  - prompts/heldout.jsonl"):
        prepare.run(config(folder, "data.seed=77"))
    assert texts(folder) == before


def test_names_that_only_the_build_knows_are_refused_too(folder, tmp_path):
    """What was removed is listed where an evaluation set is named: found when everything is built, before a rename."""
    (folder / "prompts" / "removed.jsonl").write_text("mine")
    before = texts(folder)
    with pytest.raises(DataError, match=r"nothing was changed:\n  - prompts/removed.jsonl\n"):
        prepare.run(config(folder, "data.decontaminate=['builtin:gsm8k']"))
    assert texts(folder) == before and not (tmp_path / "data.tmp").exists()


def test_a_tokenizer_that_lies_there_already_stays_the_users(folder, tmp_path):
    prepare.run(config(tmp_path / "first"))
    os.rename(tmp_path / "first" / "tokenizer", folder / "tokenizer")
    prepare.run(config(folder, f"data.tokenizer={folder}/tokenizer"))
    assert "tokenizer/tokenizer.json" not in json.loads((folder / "_DONE").read_text())["files"]
    assert (folder / "tokenizer" / "tokenizer.json").exists() and (folder / "corpus" / "gsm8k.bin").exists()


@pytest.mark.parametrize("renames", [0, 3])
def test_killed_between_renames_it_goes_on(folder, monkeypatch, renames):
    """New names, old names and both contents of one name: the list of both knows all of them as ours."""
    prepare.run(config(folder))
    changed = config(folder, CORPUS.replace("NAME", "other"), "data.seed=77")
    left = [renames]

    def killed(source, target):
        if Path(source).is_relative_to(folder.with_name("data.tmp")) and Path(target).is_relative_to(folder):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(data_folder.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(changed)
    assert not (folder / "_DONE").exists() and (folder / "_PLACING").exists()
    summary = prepare.run(changed)
    assert "corpus/gsm8k.bin" not in texts(folder) and not (folder / "_PLACING").exists()
    assert prepare.run(changed) == summary and {name: texts(folder)[name] for name in USERS} == USERS
