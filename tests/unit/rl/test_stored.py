"""Finished rollouts on disk: without experts, readable by the viewer, the last so many of them."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from r1train.config.load import config_tree, load_config
from r1train.config.schema_rl import RolloutConfig
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.rl import stored
from r1train.rl.dynamic_sampling import ScoredGroup
from r1train.rl.stored import drop_old, store_rollout
from r1train.rollout.types import Group, Sample, group_from_row, read_rows
from r1train.stages.lineage import config_reasons

PROMPT = Prompt("p7", "gsm8k", "1+2?", "3", {}, (0, 3, 4))


def rollout(version: int) -> list[ScoredGroup]:
    sample = Sample(
        prompt_id="p7",
        index=0,
        tokens=np.array([5, 6, 1]),
        logprobs=np.array([-1 / 3, -0.5, -2.0], dtype=np.float32),
        finish="eos",
        policy_version=version,
        text="ab",
        routes=np.ones((5, 2, 4), dtype=np.uint8),
        earlier=((version - 1, 2),),
    )
    return [ScoredGroup(0, Group(prompt=PROMPT, samples=(sample,)), (Score(1.5, {"accuracy": 1.0}, None),))]


@pytest.fixture
def as_rank(monkeypatch):
    """as_rank(n): this process is data-parallel rank n, which decides."""
    monkeypatch.setattr(stored, "decides", lambda: True)
    return lambda rank: monkeypatch.setattr(stored.parallel_state, "get_data_parallel_rank", lambda: rank)


def grpo(root: Path, *overrides: str):
    return load_config(
        ["experiment=tiny", "stage=grpo", "stage.init_from=x", f"root={root}", *overrides], check_files=False
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_stored(tmp_path, as_rank):
    """All but the experts; its samples are not changed for those who train on them."""
    cfg, drawn = grpo(tmp_path), rollout(4)
    as_rank(0)
    store_rollout(cfg, drawn, step=4)
    (row,) = read_rows(cfg.run_dir / "rollouts" / "step_00000004_dp_0000.jsonl")
    (sample,) = group_from_row(row).samples
    assert sample.routes is None and row["scores"] == [{"value": 1.5, "parts": {"accuracy": 1.0}, "error": None}]
    assert sample.logprobs.tolist() == drawn[0].group.samples[0].logprobs.tolist()
    assert sample.drawn_by == ((3, 2), (4, 1))
    assert drawn[0].group.samples[0].routes is not None


def test_the_last_ones_are_kept(tmp_path, as_rank):
    cfg = grpo(tmp_path, "rollout.keep_stored=2")
    for step in (0, 2, 4, 6):
        for rank in (0, 1):
            as_rank(rank)
            store_rollout(cfg, rollout(step), step=step)
    folder = cfg.run_dir / "rollouts"
    assert names(folder) == [f"step_0000000{step}_dp_000{rank}.jsonl" for step in (4, 6) for rank in (0, 1)]
    as_rank(0)
    everything = grpo(tmp_path / "all", "rollout.keep_stored=null")
    for step in range(0, 40, 2):
        store_rollout(everything, rollout(step), step=step)
    assert len(names(everything.run_dir / "rollouts")) == 20
    defaults = {field.name: field.default for field in fields(RolloutConfig)}
    assert (defaults["keep_stored"], grpo(tmp_path).rollout.keep_stored) == (10, None), "tiny rollouts are all kept"


def test_a_run_that_goes_on_from_an_earlier_step(tmp_path):
    """Files of an attempt that came further, of a layout with more ranks, journals and carried samples stay."""
    others = ["carried", "step_00000000_dp_0000_pp_00.part.jsonl", "step_00000002_dp_0000.tmp"]
    old = [f"step_0000000{step}_dp_000{rank}.jsonl" for step in (2, 4, 6, 8) for rank in (0, 1, 2)]
    for name in (*others, *old):
        (tmp_path / name).touch()
    drop_old(tmp_path, keep=2, step=6)
    assert names(tmp_path) == sorted(others + [name for name in old if name[12] in "468"])


def test_how_many_are_kept_decides_nothing(tmp_path):
    trees = [config_tree(grpo(tmp_path, f"rollout.keep_stored={count}")) for count in (1, "null")]
    assert config_reasons(*trees) == []
