"""What may be missing before a schedule runs: what its steps write, and nothing else in the data folder."""

import pytest

from r1train.__main__ import main
from r1train.config.steps import check_schedule, plan_steps
from r1train.errors import ConfigError

STEPS = (
    "schedule.steps=[{id: prepare, stage: prepare, title: p}, {id: pretrain, stage: pretrain, title: b}, "
    "{id: rl, stage: grpo, title: r, init_from: pretrain, set: {stage.prompts: '${data.dir}/prompts/PROMPTS.jsonl'}}]"
)


def schedule(root, prompts, *overrides):
    return ["experiment=tiny", f"root={root}", STEPS.replace("PROMPTS", prompts), *overrides]


def test_a_file_that_prepare_does_not_write_has_to_be_there(tmp_path):
    check_schedule(schedule(tmp_path, "train"))
    with pytest.raises(ConfigError) as caught:
        check_schedule(schedule(tmp_path, "general"))
    (problem,) = caught.value.problems
    assert (problem.key, problem.what) == ("[rl] stage.prompts", "no such file")
    assert problem.value == f"{tmp_path}/data/prompts/general.jsonl"
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    (tmp_path / "data" / "prompts" / "general.jsonl").write_text("{}\n")
    check_schedule(schedule(tmp_path, "general"))


def test_a_corpus_that_prepare_does_not_make_has_to_be_there(tmp_path):
    own = "[{name: mine, source: 'builtin:text', weight: 1.0}]"
    check_schedule(schedule(tmp_path, "train", f"data.corpora={own}", "data.worked_examples=0"))
    with pytest.raises(ConfigError) as caught:
        check_schedule(schedule(tmp_path, "train", f"per_stage.pretrain.data.corpora={own}"))
    ends = [str(problem.value).removeprefix(f"{tmp_path}/data/") for problem in caught.value.problems]
    assert ends == ["corpus/mine.bin", "corpus/mine.idx"]


def test_what_is_r1_fulls_users_own(tmp_path):
    """Its schedule names three files of the user's in the data folder that prepare makes."""
    with pytest.raises(ConfigError) as caught:
        check_schedule(["experiment=tiny", "schedule=r1_full", f"root={tmp_path}"])
    missing = {problem.value for problem in caught.value.problems if problem.what == "no such file"}
    names = ("data/other.jsonl", "data/prompts/general.jsonl", "student/hf/tokenizer.json")
    assert missing >= {f"{tmp_path}/{name}" for name in names}
    assert not {value for value in missing if value.endswith(("train.jsonl", "heldout.jsonl", "cold_start.jsonl"))}


@pytest.mark.parametrize("override", ["step=rl1", "+step=rl1"])
def test_one_id_for_all_steps_is_refused(override, capsys):
    with pytest.raises(ConfigError, match=r"step = 'rl1': a schedule names its steps itself. Fix: leave it out; one"):
        plan_steps(["experiment=tiny", override])
    for mode in ("run", "check", "steps"):
        assert main([f"mode={mode}", "experiment=tiny", override]) == 2
    assert "one stage alone: stage=... step=rl1" in capsys.readouterr().err
    assert main(["mode=check", "experiment=tiny", "stage=prepare", override]) == 0
