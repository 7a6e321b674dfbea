"""A stage that is started again by hand or by Slurm when its run folder holds a result already."""

import json
from pathlib import Path

import pytest

from r1train.__main__ import main
from r1train.config.load import dump_resolved, load_config
from r1train.log.lock import hold
from r1train.log.manifest import write_manifest
from r1train.log.result import write_result
from r1train.stages import prepare
from r1train.stages.lineage import begin_manifest, finish_manifest

STAGE = [
    "experiment=tiny",
    "stage=prepare",
    "data.corpora=[{name: gsm8k, source: 'builtin:gsm8k', weight: 1.0}]",
    "data.worked_examples=0",
    "data.tokenizer_vocab_size=320",
    "data.tasks.0.train=20",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with finished data; run_stage itself would make this process one of a CPU run."""
    root = tmp_path_factory.mktemp("finished")
    cfg = load_config([*STAGE, f"root={root}"])
    dump_resolved(cfg, cfg.run_dir)
    manifest = begin_manifest(cfg)
    result = prepare.run_stage(cfg)
    write_manifest(cfg.run_dir, finish_manifest(cfg, manifest, result))
    write_result(cfg.run_dir, result)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_again_says_that_it_is_done(root, capsys):
    before = contents(root)
    assert main([*STAGE, f"root={root}"]) == 0
    assert capsys.readouterr().out == f"prepare: already finished, nothing to do ({root}/prepare)\n"
    assert contents(root) == before


def test_with_another_config_it_is_refused_or_kept(root, capsys):
    before = contents(root)
    assert main([*STAGE, f"root={root}", "data.seed=77"]) == 2
    said = capsys.readouterr()
    assert "1 step is stale, nothing was changed:\n  - prepare: data.seed was " in said.err and said.out == ""
    assert f"or move {root}/prepare aside" in said.err and "stale=rerun" not in said.err
    assert main([*STAGE, f"root={root}", "data.seed=77", "stale=keep"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert contents(root) == before


def test_rerun_is_the_schedules(root, capsys):
    before = contents(root)
    assert main([*STAGE, f"root={root}", "data.seed=77", "stale=rerun"]) == 2
    assert "stale = 'rerun': a stage alone does not move its own run folder. Fix: move" in capsys.readouterr().err
    assert contents(root) == before


def test_steps_for_slurm_are_refused_kept_or_moved_as_in_a_run(root, capsys):
    """slurm/schedule.sh asks mode=steps before it submits anything."""
    steps = ["mode=steps", "schedule.steps=[{id: prepare, stage: prepare, title: p}]", f"root={root}"]
    own = [word for word in STAGE if word != "stage=prepare"]
    assert main([*steps, *own]) == 0
    assert "stale=keep" not in capsys.readouterr().out
    assert main([*steps, *own, "data.seed=77"]) == 2
    assert "prepare: data.seed was " in capsys.readouterr().err
    assert main([*steps, *own, "data.seed=77", "stale=keep"]) == 0
    assert capsys.readouterr().out.rstrip("\n").split("\t")[-1] == "stale=keep"
    old = (root / "data" / "_DONE").read_text()
    with hold(root / "prepare" / "locks" / "rank_0.lock", wait_s=0.0):  # a job of this step is running
        assert main([*steps, *own, "data.seed=77", "stale=rerun"]) == 2
    assert "the same run is going on" in capsys.readouterr().err and (root / "data" / "_DONE").exists()
    assert main([*steps, *own, "data.seed=77", "stale=rerun"]) == 0
    said = capsys.readouterr()
    assert said.err.split() == ["moved", "aside:", f"{root}/data.stale_1", "moved", "aside:", f"{root}/prepare.stale_1"]
    assert (root / "data.stale_1" / "_DONE").read_text() == old and not (root / "prepare").exists()
    assert "stale" not in said.out and json.loads(old)["files"]
