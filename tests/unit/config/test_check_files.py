"""Rules that look at files: missing, empty and mismatching ones, and what an earlier step will still write."""

import json
from pathlib import Path

import pytest

from r1train.config.load import load_config

STAGES = {
    "pretrain": [],
    "sft": ["stage.init_from={root}/pretrain"],
    "grpo": ["stage.init_from={root}/pretrain"],
    "reject": ["stage.init_from={root}/pretrain"],
    "evaluate": ["stage.init_from={root}/pretrain"],
}


def overrides(root: Path, stage: str) -> list[str]:
    return [f"root={root}", f"stage={stage}", *(text.format(root=root) for text in STAGES[stage])]


@pytest.mark.parametrize("stage", STAGES)
def test_all_files_there(problems, prepared, stage):
    assert problems(*overrides(prepared, stage), check_files=True) == {}


@pytest.mark.parametrize(
    ("stage", "file", "key"),
    [
        ("pretrain", "data/corpus/worked.idx", "data.corpora.2.name"),
        ("sft", "data/cold_start.jsonl", "stage.dataset"),
        ("sft", "data/prompts/heldout.jsonl", "data.dir"),
        ("grpo", "data/prompts/train.jsonl", "stage.prompts"),
        ("reject", "data/prompts/train.jsonl", "stage.prompts"),
        ("evaluate", "data/prompts/heldout.jsonl", "data.dir"),
        ("evaluate", "pretrain/checkpoints/step_00000150/_DONE", "stage.init_from"),
    ],
)
def test_missing_and_empty_files(problems, prepared, stage, file, key):
    (prepared / file).unlink()
    missing = problems(*overrides(prepared, stage), check_files=True)
    assert list(missing) == [key]
    assert missing[key].what in ("no such file", "no finished checkpoint there")
    if key != "stage.init_from":
        (prepared / file).touch()
        assert problems(*overrides(prepared, stage), check_files=True)[key].what == "this file is empty"


def test_without_tasks_nobody_asks_for_problems(problems, prepared):
    """The prepare stage then leaves an empty file."""
    (prepared / "data/prompts/heldout.jsonl").write_text("")
    start = overrides(prepared, "evaluate")
    assert problems(*start, check_files=True)["data.dir"].what == "this file is empty"
    assert problems(*start, "data.tasks=[]", check_files=True) == {}


def test_init_from_without_a_run_folder(problems, prepared):
    start = [f"root={prepared}", "stage=evaluate", "stage.init_from=nowhere"]
    assert problems(*start, check_files=True)["stage.init_from"].what == "no such run folder"


def test_vocabulary_mismatch(problems, prepared):
    found = problems(*overrides(prepared, "sft"), "data.tokenizer_vocab_size=500", check_files=True)
    assert "vocabulary mismatch" in found["data.tokenizer_vocab_size"].what
    assert "512 entries" in found["data.tokenizer_vocab_size"].what
    (prepared / "data/tokenizer/tokenizer.json").write_text("{}")
    assert "not a tokenizer file" in problems(*overrides(prepared, "sft"), check_files=True)["data.dir"].what


def test_sources_of_the_prepare_stage(problems, tmp_path):
    assert problems("stage=prepare", check_files=True) == {}
    bad = "data.corpora.0.source"
    assert problems("stage=prepare", f"{bad}=none.txt", check_files=True)[bad].what == "no such file"
    assert problems("stage=prepare", f"{bad}={tmp_path}", check_files=True)[bad].what == "not a file"
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert problems("stage=prepare", f"{bad}={empty}", check_files=True)[bad].what == "this file is empty"
    unknown = problems("stage=prepare", f'{bad}="builtin:nope"', check_files=True)[bad]
    assert unknown.what == "the package ships no such data"
    assert "text" in unknown.fix


def test_evaluation_sets_of_the_prepare_stage(problems, tmp_path):
    key, start = "data.decontaminate.0", "stage=prepare"
    assert problems(start, 'data.decontaminate=["builtin:gsm8k"]', check_files=True) == {}
    assert problems(start, f"data.decontaminate=[{tmp_path}/no.jsonl]", check_files=True)[key].what == "no such file"
    unknown = problems(start, 'data.decontaminate=["builtin:text"]', check_files=True)[key]
    assert (unknown.what, unknown.fix) == ("the package ships no such evaluation set", "builtin:gsm8k, or a jsonl file")
    path = tmp_path / "suite.jsonl"
    path.touch()
    assert problems(start, f"data.decontaminate=[{path}]", check_files=True)[key].what == "this file is empty"
    path.write_text("{}")
    assert problems(start, f"data.decontaminate=[{path}]", check_files=True) == {}
    below = problems(start, "data.decontaminate_words=0")["data.decontaminate_words"]
    assert below.what == "below 1"


def test_tokenizer_and_problems_of_the_prepare_stage(problems, tmp_path):
    """A folder without tokenizer.json, one with another vocabulary, one that fits; files of problems."""
    start = ("stage=prepare", f"data.tokenizer={tmp_path}", "data.tokenizer_vocab_size=512")
    found = problems(*start, check_files=True)["data.tokenizer"]
    assert found.what == "no such file"
    assert "tools/import_hf.py" in found.fix
    vocab = {str(index): index for index in range(511)}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocab}, "added_tokens": [{"content": "a"}]})
    )
    assert problems(*start, check_files=True) == {}
    assert (
        "has 512 entries"
        in problems(*start[:2], "data.tokenizer_vocab_size=500", check_files=True)["data.tokenizer_vocab_size"].what
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "not a tokenizer file" in problems(*start, check_files=True)["data.tokenizer"].what
    files = ("data.tasks.0.train_file=none.jsonl", f"data.tasks.0.heldout_file={tmp_path}")
    found = problems("stage=prepare", *files, check_files=True)
    assert found["data.tasks.0.train_file"].what == "no such file"
    assert found["data.tasks.0.heldout_file"].what == "not a file"


def test_reject_mix_file(problems, prepared):
    assert problems(*overrides(prepared, "reject"), "stage.mix=none", check_files=True)["stage.mix"].value == "none"


def test_files_of_earlier_steps_may_be_missing(tmp_path):
    start = ["experiment=tiny", f"root={tmp_path}", "stage=sft", f"stage.init_from={tmp_path}/pretrain"]
    made_later = (tmp_path / "pretrain", tmp_path / "data")
    assert load_config(start, made_later=made_later).stage.name == "sft"
    assert not any(tmp_path.iterdir())
