"""Which prompt files a stage's problems come from, looked at before the stage writes or builds anything."""

import json
import sys

import pytest

from r1train.config.load import load_config
from r1train.errors import DataError, EnvironmentProblem
from r1train.stages import run as stage_run
from r1train.stages.prompt_files import check_prompt_files

GOOD = {"id": "a", "task": "gsm8k", "question": "?", "answer": "7", "metadata": {}}


def prompts(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "b", **changes}) + "\n")
    return path


@pytest.fixture
def cfg_of(tmp_path):
    """cfg_of("stage=...", ...) -> a config whose data folder holds sound held-out problems."""
    prompts(tmp_path / "data" / "prompts" / "heldout.jsonl")

    def load(*overrides):
        start = ["experiment=tiny", f"root={tmp_path}", f"data.dir={tmp_path}/data"]
        return load_config([*start, *overrides], check_files=False)

    return load


GRPO = ("stage=grpo", "stage.init_from=x")
FILES = [
    ("rl.jsonl", (*GRPO, "stage.prompts={root}/rl.jsonl")),
    ("rl.jsonl", ("stage=reject", "stage.init_from=x", "stage.prompts={root}/rl.jsonl")),
    ("data/prompts/heldout.jsonl", ("stage=evaluate", "stage.init_from=x")),
    ("data/prompts/heldout.jsonl", ("stage=sft", "stage.init_from=x", "stage.dataset=y", "evaluate_after=true")),
]


@pytest.mark.parametrize(("name", "overrides"), FILES)
def test_every_file_that_is_asked_from(cfg_of, tmp_path, name, overrides):
    cfg = cfg_of(*(override.format(root=tmp_path) for override in overrides))
    path = prompts(tmp_path / name)
    check_prompt_files(cfg)
    prompts(path, answer="three")
    with pytest.raises(
        DataError, match=f"{path}: 1 of 2 problems .*\n  - b .task gsm8k.: .* 'three' is no plain number"
    ):
        check_prompt_files(cfg)
    prompts(path, task="nonsense_task")
    with pytest.raises(DataError, match=f"{path}: unknown task 'nonsense_task'"):
        check_prompt_files(cfg)


def test_late_prompts_and_languages(cfg_of, tmp_path):
    late = prompts(tmp_path / "late.jsonl", task="general", answer="-", metadata={"language": "tlh"})
    first = prompts(tmp_path / "rl.jsonl")
    start = [*GRPO, f"stage.prompts={first}", f"stage.late_prompts={{prompts: '{late}', share: 0.5, from_step: 3}}"]
    check_prompt_files(cfg_of(*start, "reward.language=0.0"))
    with pytest.raises(DataError, match=f"{late}: .*\n  - b .task general.: metadata language = 'tlh' is not known"):
        check_prompt_files(cfg_of(*start, "reward.language=0.1"))


def test_programs_that_nothing_here_compiles(cfg_of, tmp_path, monkeypatch):
    """Graders would find out after the first rollout."""
    tests = [{"stdin": "", "stdout": "1"}]
    path = prompts(tmp_path / "rl.jsonl", task="code", metadata={"code_language": "cpp", "tests": tests})
    cfg = cfg_of(*GRPO, f"stage.prompts={path}")
    monkeypatch.setattr("r1train.reward.references.compiler", lambda: None)
    with pytest.raises(
        EnvironmentProblem, match=f"{path}: 1 problems ask for C.. .the first is b., but this host has no"
    ):
        check_prompt_files(cfg)
    monkeypatch.setattr("r1train.reward.references.compiler", lambda: "/usr/bin/g++")
    check_prompt_files(cfg)
    monkeypatch.setattr("r1train.reward.references.compiler", lambda: None)
    prompts(path, task="code", metadata={"tests": tests})
    check_prompt_files(cfg)


def test_generated_tasks_cost_no_import(cfg_of, tmp_path, monkeypatch):
    """reasoning_gym takes a second, which every stage of a small schedule would pay."""
    path = prompts(tmp_path / "rl.jsonl", task="chain_sum")
    cfg = cfg_of(*GRPO, f"stage.prompts={path}")
    assert [task.name for task in cfg.data.tasks] == ["chain_sum"]
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    check_prompt_files(cfg)


def test_a_stage_with_a_bad_reference_writes_nothing(cfg_of, tmp_path, monkeypatch):
    """Neither a process group nor a model is made before it."""
    path = prompts(tmp_path / "rl.jsonl", answer="three")
    cfg = cfg_of(*GRPO, f"stage.prompts={path}")
    monkeypatch.setattr(stage_run, "select_device", lambda _: None)
    monkeypatch.setattr(stage_run, "stage_function", lambda _: pytest.fail)
    with pytest.raises(DataError, match="'three' is no plain number"):
        stage_run.run_stage(cfg)
    assert [path.name for path in cfg.run_dir.iterdir()] == ["locks"]
