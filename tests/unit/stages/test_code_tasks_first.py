"""Tasks whose graders cannot run here are refused before a single answer is generated."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from r1train.config.load import load_config
from r1train.data.prompts import Prompt
from r1train.errors import ConfigError, EnvironmentProblem
from r1train.eval import generate
from r1train.reward.isolation import Isolation
from r1train.rollout.engine import SamplingParams
from r1train.stages import training
from r1train.stages.sampling import Asked, sample_missing

PROMPTS = [Prompt(f"p{n}", task, "?", "1", {}, (0, n)) for n, task in enumerate(["gsm8k", "code"])]


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A host that cannot isolate programs; nothing is distributed, and no engine is there."""
    monkeypatch.setattr("r1train.reward.score.probe", lambda: Isolation("none", "pretended"))
    monkeypatch.setattr(generate, "agreed", lambda value: value)
    return load_config(["experiment=tiny", f"root={tmp_path}", "evaluate_after=true"], check_files=False)


def test_evaluation(cfg, tmp_path: Path):
    target = generate.Target(tmp_path / "eval", "x/step_00000001", policy_version=1)
    with pytest.raises(EnvironmentProblem, match="pretended"):
        generate.evaluate(cfg, None, PROMPTS, target)
    assert not target.folder.exists()


def test_rejection_sampling(cfg, tmp_path: Path):
    params = SamplingParams(
        samples_per_prompt=2, temperature=1.0, top_p=1.0, max_response_tokens=8, seed=1, name="reject"
    )
    asked = Asked(PROMPTS, tmp_path / "step_00000001", params)
    with pytest.raises(EnvironmentProblem, match="pretended"):
        sample_missing(SimpleNamespace(cfg=cfg), asked)
    assert not cfg.run_dir.exists()


def test_training_that_is_evaluated_afterwards(cfg):
    """Before the trainer is built; not where nothing is evaluated, nor where programs may run without isolation."""
    job = SimpleNamespace(cfg=cfg, heldout=SimpleNamespace(prompts=PROMPTS))
    with pytest.raises(EnvironmentProblem, match="pretended"):
        training.open_trainer(job)
    training.check_evals(SimpleNamespace(cfg=replace(cfg, evaluate_after=False)))
    allowed = replace(cfg.reward, code=replace(cfg.reward.code, allow_unisolated=True))
    training.check_evals(SimpleNamespace(cfg=replace(cfg, reward=allowed), heldout=job.heldout))
    nobody = replace(allowed, grader_processes=0)
    with pytest.raises(ConfigError, match="graders of code can hang"):
        training.check_evals(SimpleNamespace(cfg=replace(cfg, reward=nobody), heldout=job.heldout))
