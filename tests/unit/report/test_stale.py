"""Which steps are stale, and why, on run folders made by hand; what each choice does."""

import json
import shutil

import pytest

from r1train.config.load import load_config
from r1train.config.steps import plan_steps
from r1train.errors import StaleRun
from r1train.log.manifest import digest_of, read_manifest, write_manifest
from r1train.log.result import StageResult, write_result
from r1train.report.lineage import lineage, node_line
from r1train.stages.lineage import begin_manifest, finish_manifest
from r1train.stages.stale import check_run, refuse, set_aside, stale_steps

STEPS = (
    "[{id: prepare, stage: prepare, title: p}, {id: pretrain, stage: pretrain, title: b}, "
    "{id: cold_start, stage: sft, title: c, init_from: pretrain}, "
    "{id: rl1, stage: grpo, title: r, init_from: cold_start}, "
    "{id: reject, stage: reject, title: j, init_from: rl1}, "
    "{id: sft, stage: sft, title: s, init_from: pretrain, dataset_from: reject}]"
)


def checkpoint(run_dir, step, weights):
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_text(weights)
    (folder / "_DONE").write_text(json.dumps({"step": step}))


def begin(cfg):
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    versions = {"git_commit": "0123456789abcdef", "git_dirty": False, "python": "3.12", "packages": {"torch": "2.11"}}
    (cfg.run_dir / "versions.json").write_text(json.dumps(versions))
    manifest = begin_manifest(cfg)
    write_manifest(cfg.run_dir, manifest)
    return manifest


def run(cfg):
    """A stage of this config, done."""
    manifest = begin(cfg)
    if cfg.step == "prepare":
        data = cfg.run_dir.parent / "data"
        for name in ("tokenizer/tokenizer.json", "prompts/train.jsonl", "prompts/heldout.jsonl", "cold_start.jsonl"):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_text(f"{name}\n")
        for name in ("text", "gsm8k", "worked"):
            (data / "corpus").mkdir(exist_ok=True)
            (data / "corpus" / f"{name}.bin").write_text(name)
        files = {str(path.relative_to(data)): [digest_of(path)] for path in data.rglob("*") if path.is_file()}
        (data / "_DONE").write_text(json.dumps({"hash": "x", "summary": {}, "files": files}))
    elif cfg.step == "reject":
        (cfg.run_dir / "sft.jsonl").write_text("{}\n")
    else:
        checkpoint(cfg.run_dir, 10, f"weights of {cfg.step}")
    result = StageResult(id=cfg.step, title=cfg.step, stage=cfg.stage.name, seconds=1.0, loss=0.5)
    write_manifest(cfg.run_dir, finish_manifest(cfg, manifest, result))
    write_result(cfg.run_dir, result)


@pytest.fixture
def configs_of(tmp_path):
    """configs_of("key=value") -> the configs of all steps with this change."""

    def load(*changes):
        overrides = ["experiment=tiny", f"root={tmp_path}", f"schedule.steps={STEPS}", *changes]
        return [load_config(step.overrides, check_files=False) for step in plan_steps(overrides)]

    return load


@pytest.fixture
def done(configs_of):
    """Every step is done; nothing is stale."""
    configs = configs_of()
    for cfg in configs:
        run(cfg)
    assert stale_steps(configs) == {}
    return configs


def test_a_given_tokenizer_is_an_input_of_prepare_and_its_template_of_every_stage(configs_of, tmp_path):
    """Its files count, not the folder's name; a chat template that changes makes everything stale."""
    for place in ("given", "moved"):
        (tmp_path / place).mkdir()
        for name in ("tokenizer.json", "chat_template.jinja"):
            (tmp_path / place / name).write_text(name)
    configs = configs_of(f"data.tokenizer={tmp_path}/given")
    for cfg in configs[:3]:
        run(cfg)
        if cfg.step == "prepare":
            (tmp_path / "data" / "tokenizer" / "chat_template.jinja").write_text("a")
    names = {artifact.name for artifact in read_manifest(tmp_path / "prepare").inputs}
    assert {"data.tokenizer tokenizer.json", "data.tokenizer chat_template.jinja"} <= names
    assert stale_steps(configs) == {}
    assert stale_steps(configs_of(f"data.tokenizer={tmp_path}/moved")) == {}
    (tmp_path / "given" / "chat_template.jinja").write_text("another")
    assert "has changed" in stale_steps(configs)["prepare"][0]
    (tmp_path / "data" / "tokenizer" / "chat_template.jinja").write_text("b")
    assert "(tokenizer chat_template.jinja) has changed" in stale_steps(configs)["cold_start"][0]


def test_manifest_of_a_step(done, tmp_path):
    manifest = read_manifest(tmp_path / "sft")
    assert {a.name: a.path for a in manifest.inputs} == {
        "stage.init_from": "pretrain/checkpoints/step_00000010",
        "stage.dataset": "reject/sft.jsonl",
        "tokenizer": "data/tokenizer/tokenizer.json",
        "held-out problems": "data/prompts/heldout.jsonl",
    }
    assert [a.path for a in manifest.outputs] == ["sft/checkpoints/step_00000010"]
    assert (manifest.commit, manifest.dirty) == ("0123456789abcdef", False)
    assert manifest.numbers["loss"] == 0.5 and "seconds" not in manifest.numbers
    assert [a.path for a in read_manifest(tmp_path / "reject").outputs] == ["reject/sft.jsonl"]


def test_lineage_of_a_finished_schedule(done):
    nodes = {node.step: node for node in lineage(done)}
    assert {step: node.parents for step, node in nodes.items()} == {
        "prepare": (),
        "pretrain": ("prepare",),
        "cold_start": ("pretrain", "prepare"),
        "rl1": ("cold_start", "prepare"),
        "reject": ("rl1", "prepare"),
        "sft": ("pretrain", "reject", "prepare"),
    }
    assert node_line(nodes["sft"]).startswith("sft (sft): done, config ")
    assert node_line(nodes["sft"]).endswith(", commit 0123456789, also from reject, prepare")


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("rl.clip_high=0.9", {"rl1": "rl.clip_high was 0.2, is now 0.9"}),
        (
            "per_stage.cold_start.lr.learning_rate.start=0.5",
            {"cold_start": "lr.learning_rate.start was 0.002, is now 0.5"},
        ),
        ("per_stage.reject.stage.num_prompts=9", {"reject": "stage.num_prompts was 600, is now 9"}),
        ("data.worked_examples=9", {"prepare": "data.worked_examples was 1500, is now 9"}),
        ("seed=5", {"pretrain": "seed was 1234, is now 5", "reject": "seed was 1234, is now 5"}),
    ],
)
def test_a_changed_key_is_named_and_what_depends_on_it_is_stale(done, configs_of, change, stale):
    found = stale_steps(configs_of(change))
    for step, why in stale.items():
        assert why in found[step]
    below = {
        "rl1": {"reject", "sft"},
        "cold_start": {"rl1", "reject", "sft"},
        "reject": {"sft"},
        "prepare": {"pretrain", "cold_start", "rl1", "reject", "sft"},
        "pretrain": {"cold_start", "rl1", "reject", "sft"},
    }
    first = next(iter(stale))
    assert set(found) == {first} | below[first]
    assert all(any("its parent" in why for why in found[step]) for step in below[first])


def test_what_ships_with_the_package_counts_by_its_name(done, configs_of, tmp_path):
    """Decontamination that is turned on for finished data makes them stale, and so does turning it off again."""
    clean = configs_of("data.decontaminate=['builtin:gsm8k']")
    found = stale_steps(clean)
    assert found["prepare"] == ["data.decontaminate.0 was absent, is now 'builtin:gsm8k'"]
    assert set(found) == {"prepare", "pretrain", "cold_start", "rl1", "reject", "sft"}
    shutil.rmtree(tmp_path / "prepare")
    run(clean[0])
    assert stale_steps(clean) == {}
    assert "was 'builtin:gsm8k', is now absent" in stale_steps(done)["prepare"][0]
    (tmp_path / "rows.jsonl").write_text("{}")
    by_path = stale_steps(configs_of(f"data.decontaminate=['builtin:gsm8k', '{tmp_path}/rows.jsonl']"))
    assert by_path["prepare"] == ["its input rows.jsonl (data.decontaminate.1) was not there before"]


@pytest.mark.parametrize(
    "change",
    [
        "cluster.timeout_minutes=99",
        "parallel.ep=1",
        "per_stage.pretrain.stage.micro_batch_size=4",
        "per_stage.pretrain.stage.keep_checkpoints=1",
        "rollout.batch_size=7",
        "rollout.store_groups=true",
        "rl.offload_during_rollout=true",
        "rl.reference_offload=true",
        "eval.perplexity_length=64",
        "schedule.name=other",
    ],
)
def test_what_does_not_decide_a_result_is_not_looked_at(done, configs_of, change):
    assert stale_steps(configs_of(change)) == {}


def test_an_altered_parent_artifact(done, tmp_path):
    (tmp_path / "pretrain" / "checkpoints" / "step_00000010" / "__0_0.distcp").write_text("weights of bask")
    found = stale_steps(done)
    assert found["pretrain"] == ["its own pretrain/checkpoints/step_00000010 was altered after it had finished"]
    assert found["cold_start"][0] == "its input pretrain/checkpoints/step_00000010 (stage.init_from) has changed"
    assert set(found) == {"pretrain", "cold_start", "rl1", "reject", "sft"}
    assert (tmp_path / "rl1" / "result.json").exists(), "nothing was touched"


def test_a_deleted_data_file(done, tmp_path):
    (tmp_path / "data" / "prompts" / "train.jsonl").unlink()
    found = stale_steps(done)
    assert found["prepare"] == ["its own data/prompts/train.jsonl is gone"]
    assert found["rl1"][0] == "its input data/prompts/train.jsonl (stage.prompts) is gone"


def test_a_deleted_run_folder_makes_its_children_stale(done, tmp_path):
    shutil.rmtree(tmp_path / "reject")
    found = stale_steps(done)
    assert set(found) == {"sft"}
    assert found["sft"] == [
        "its input reject/sft.jsonl (stage.dataset) is gone",
        "its parent reject is not finished, so it has to run again",
    ]


def test_a_parent_that_has_to_run_again(done, tmp_path):
    (tmp_path / "reject" / "result.json").unlink()
    found = stale_steps(done)
    assert found == {"sft": ["its parent reject is not finished, so it has to run again"]}


def test_refusal_says_why_and_what_to_do(done, configs_of):
    with pytest.raises(StaleRun) as error:
        refuse(stale_steps(configs_of("rl.clip_high=0.9")))
    text = str(error.value)
    assert error.value.exit_code == 2
    assert text.startswith("3 steps are stale, nothing was changed:\n  - rl1: rl.clip_high was 0.2, is now 0.9\n")
    assert "\n  - sft: its parent reject is stale\n" in text
    assert "stale=rerun" in text and "stale=keep" in text
    refuse({})


def test_rerun_moves_aside_and_loses_nothing(done, configs_of, tmp_path):
    configs = configs_of("per_stage.reject.stage.num_prompts=9")
    moved = set_aside(configs, stale_steps(configs))
    assert moved == [tmp_path / "reject.stale_1", tmp_path / "sft.stale_1"]
    assert (tmp_path / "reject.stale_1" / "sft.jsonl").read_text() == "{}\n"
    assert not (tmp_path / "sft").exists() and (tmp_path / "rl1" / "result.json").exists()
    for cfg in configs[-2:]:
        run(cfg)
    assert stale_steps(configs) == {}
    again = configs_of("per_stage.reject.stage.num_prompts=8")
    assert set_aside(again, stale_steps(again))[0] == tmp_path / "reject.stale_2"


def test_rerun_of_altered_data_prepares_them_anew(done, tmp_path):
    (tmp_path / "data" / "cold_start.jsonl").write_text("other")
    moved = set_aside(done, stale_steps(done))
    assert moved[:2] == [tmp_path / "data.stale_1", tmp_path / "prepare.stale_1"]
    assert (tmp_path / "data.stale_1" / "cold_start.jsonl").read_text() == "other"
    assert not (tmp_path / "data").exists()


def test_rerun_with_a_changed_data_config_keeps_the_old_data_and_the_users_files(done, configs_of, tmp_path):
    data, aside = tmp_path / "data", tmp_path / "data.stale_1"
    (data / "prompts" / "general.jsonl").write_text("of the user")
    assert stale_steps(done) == {}, "a file that prepare did not write is none of its outputs"
    configs = configs_of("data.seed=77")
    assert set_aside(configs, stale_steps(configs))[:2] == [aside, tmp_path / "prepare.stale_1"]
    names = ["_DONE", "cold_start.jsonl", "corpus", "prompts", "tokenizer"]
    assert sorted(path.name for path in aside.iterdir()) == names
    assert (aside / "prompts" / "train.jsonl").read_text() == "prompts/train.jsonl\n"
    assert [str(path.relative_to(data)) for path in data.rglob("*")] == ["prompts", "prompts/general.jsonl"]


def test_data_of_a_version_without_a_list_move_as_a_whole(done, configs_of, tmp_path):
    (tmp_path / "data" / "_DONE").write_text(json.dumps({"hash": "x", "summary": {}}))
    configs = configs_of("data.seed=77")
    assert set_aside(configs, stale_steps(configs))[0] == tmp_path / "data.stale_1"
    assert (tmp_path / "data.stale_1" / "cold_start.jsonl").exists() and not (tmp_path / "data").exists()


def test_a_begun_stage_does_not_go_on_from_other_inputs(done, configs_of, tmp_path):
    (cold,) = [cfg for cfg in configs_of() if cfg.step == "cold_start"]
    shutil.rmtree(cold.run_dir)
    begin(cold)
    (other,) = [
        cfg for cfg in configs_of("per_stage.cold_start.lr.learning_rate.start=0.5") if cfg.step == "cold_start"
    ]
    check_run(other)  # nothing was saved yet, so nothing can be mixed
    checkpoint(cold.run_dir, 5, "half")
    check_run(cold)
    with pytest.raises(StaleRun, match="cold_start: lr.learning_rate.start was 0.002, is now 0.5"):
        check_run(other)
