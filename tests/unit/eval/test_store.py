"""Files of an evaluation: what makes a report count as done."""

from dataclasses import replace

import pytest

from r1train.config.load import load_config
from r1train.config.schema_eval import SuiteConfig
from r1train.data.prompts import Prompt
from r1train.eval.benchmark import suite_params
from r1train.eval.score import Outcome, make_report
from r1train.eval.store import eval_key, finished, samples_path, store
from r1train.rollout.types import read_rows

SUITE = SuiteConfig(name="amc", path="a.jsonl", kind="math", temperature=0.0, samples_per_problem=1)
PROMPTS = [Prompt("amc/0", "amc", "1+1?", "2", {}, (0, 3, 40, 4))]


def report(key):
    right = Outcome(correct=True, formatted=True, answer="2", response_tokens=3, truncated=False, error=None)
    return make_report("amc", {"amc/0": [right]}, checkpoint="rl1/step_00000003", key=key)


def test_a_report_counts_for_its_key_only(tmp_path):
    assert finished(tmp_path, "amc", "k") is None
    store(tmp_path / "eval", report("k"), [{"prompt": 1}])
    assert finished(tmp_path / "eval", "amc", "k") == report("k")
    assert finished(tmp_path / "eval", "amc", "other") is None
    assert list(read_rows(samples_path(tmp_path / "eval", "amc"))) == [{"prompt": 1}]
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["amc.json", "samples_amc.jsonl"]


def test_samples_come_before_the_report(tmp_path):
    """A kill in between leaves no report, so the suite is done again."""

    def torn():
        yield {"prompt": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, report("k"), torn())
    assert finished(tmp_path, "amc", "k") is None


def test_the_key_holds_what_decides_the_numbers(cfg):
    def key(config=cfg, suite=SUITE, prompts=PROMPTS, checkpoint="rl1/step_3"):
        return eval_key(config, suite, prompts, checkpoint=checkpoint)

    same = key()
    assert key(suite=replace(SUITE, path="elsewhere.jsonl", problems=1)) == same
    assert (
        key(load_config(["experiment=tiny", "stage=evaluate", "stage.init_from=y", "root=r"], check_files=False))
        == same
    )
    other = [
        key(checkpoint="rl1/step_4"),
        key(replace(cfg, seed=5)),
        key(replace(cfg, eval=replace(cfg.eval, top_p=0.5))),
        key(suite=replace(SUITE, answer_from=("boxed",))),
        key(suite=None),
        key(prompts=[replace(PROMPTS[0], answer="3")]),
        key(prompts=[replace(PROMPTS[0], token_ids=(0, 3, 41, 4))]),
    ]
    assert len({same, *other}) == 8


def test_a_suites_own_sampling_wins(cfg):
    params = suite_params(cfg, SUITE)
    assert (params.temperature, params.samples_per_prompt, params.name) == (0.0, 1, "eval/amc")
    assert (params.top_p, params.max_response_tokens) == (cfg.eval.top_p, cfg.eval.max_response_tokens)
    usual = suite_params(cfg, SuiteConfig(name="amc", path="a", kind="math"))
    assert (usual.temperature, usual.samples_per_prompt) == (0.6, 1)
