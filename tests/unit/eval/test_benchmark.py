"""A suite and passkey retrieval from prompts to files, with an engine that answers from a list."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from r1train.config.schema_eval import PasskeyConfig
from r1train.errors import EnvironmentProblem
from r1train.eval import benchmark, generate
from r1train.eval.benchmark import evaluate_passkey, evaluate_suite, load_suites
from r1train.eval.generate import Target, evaluate
from r1train.eval.score import read_report
from r1train.reward.isolation import Isolation
from r1train.rl import replica_scorer
from r1train.rollout.types import read_rows


class Answers:
    """An engine that gives every prompt the same responses; asked: prompts and parameters of every call."""

    def __init__(self, group_of, texts):
        self._group_of, self._texts, self.asked = group_of, texts, []

    def generate(self, prompts, params, *, policy_version, watcher=None):
        self.asked.append(([prompt.id for prompt in prompts], params))
        groups = [
            self._group_of(prompt, [self._texts(prompt, i) for i in range(params.samples_per_prompt)])
            for prompt in prompts
        ]
        for place, group in enumerate(groups):
            for sample in group.samples if watcher is not None else ():
                watcher.finished(place, group.prompt, sample)
        return groups


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for module in (benchmark, generate):
        monkeypatch.setattr(module, "local_part", list)
        monkeypatch.setattr(module, "gather_groups", list)
        monkeypatch.setattr(module, "gather_at_rank0", list)
    for module in (benchmark, replica_scorer):
        monkeypatch.setattr(module, "decides", lambda: True)
        monkeypatch.setattr(module, "from_deciding_rank", lambda value: value)
    monkeypatch.setattr(generate, "agreed", lambda value: value)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(benchmark.parallel_state, "get_data_parallel_world_size", lambda: 1)


def test_a_finished_suite_is_not_asked_again(suite_file, tokenizer, group_of, cfg, tmp_path):
    rows = [{"id": "p", "question": "1+1?", "answer": "2"}, {"id": "q", "question": "2+2?", "answer": "4"}]
    suite = suite_file("number", rows, samples_per_problem=4)
    ((_, prompts),) = load_suites(with_suite(cfg, suite), tokenizer)
    # p: 2, 2, 2, 4 (three right); q: 2, 2, 2, 4 (one right, the majority is wrong).
    engine = Answers(group_of, lambda prompt, i: f"<answer>{4 if i == 3 else 2}</answer>")
    target = Target(tmp_path / "eval", "rl1/step_00000003", policy_version=3)
    report = evaluate_suite(cfg, engine, suite, prompts, target)
    assert (report.pass_at_1, report.cons_at_k) == (0.5, 0.5)
    assert report.pass_at_k == pytest.approx({1: 0.5, 2: (1 + 0.5) / 2, 4: 1.0})
    assert report.correct_by_problem == {"a_number/p": 3, "a_number/q": 1}
    assert read_report(tmp_path / "eval" / "a_number.json") == report
    stored = list(read_rows(tmp_path / "eval" / "samples_a_number.jsonl"))
    assert [[score["answer"] for score in row["scores"]] for row in stored] == [["2", "2", "2", "4"]] * 2
    assert evaluate_suite(cfg, engine, suite, prompts, target) == report
    assert len(engine.asked) == 1
    evaluate_suite(cfg, engine, suite, prompts, Target(tmp_path / "eval", "rl1/step_00000004", 4))
    assert len(engine.asked) == 2


def test_heldout_problems_are_reused_only_where_that_is_allowed(cfg, tokenizer, suite_file, group_of, tmp_path):
    rows = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(3)]
    ((_, prompts),) = load_suites(with_suite(cfg, suite_file("number", rows, name="gsm8k")), tokenizer)

    def recorded(prompt, texts):
        """As an engine gives samples that records experts for the RL stage whose evaluation this is."""
        group = group_of(prompt, texts)
        routes = np.zeros((1, 2, 4), dtype=np.uint8)
        return replace(group, samples=tuple(replace(sample, routes=routes) for sample in group.samples))

    engine = Answers(recorded, lambda prompt, i: "<think>a</think><answer>1.0</answer>")
    target = Target(tmp_path, "x/step_00000001", policy_version=1)
    (report,) = evaluate(cfg, engine, prompts, target)
    assert (report.task, report.pass_at_1, report.problems) == ("gsm8k", pytest.approx(1 / 3), 3)
    first = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert first["scores"][0]["parts"]["accuracy"] == 1.0 and first["samples"][0]["routes"] is None
    assert evaluate(cfg, engine, prompts, target) == [report] and len(engine.asked) == 1
    evaluate(cfg, engine, prompts, Target(tmp_path, "x/step_00000001", policy_version=1, reuse=False))
    assert len(engine.asked) == 2


def test_passkey_is_greedy_and_counts_cells(cfg, tokenizer, group_of, tmp_path):
    passkey = PasskeyConfig(lengths=(200, 300), depths=(0.0, 1.0), problems=2, batch_tokens=400)
    engine = Answers(group_of, lambda prompt, i: f" {prompt.answer}." if prompt.metadata["depth"] == 1.0 else " 1")
    report = evaluate_passkey(cfg, engine, passkey, tokenizer, Target(tmp_path, "x/step_00000001", 1))
    assert report.pass_at_1 == 0.5 and report.cons_at_k is None
    assert report.details == {"200@0": 0, "200": 0.5, "@0": 0, "200@1": 1, "@1": 1, "300@0": 0, "300": 0.5, "300@1": 1}
    assert {params.temperature for _, params in engine.asked} == {0.0}
    # 400 tokens hold two prompts of 200 or one of 300.
    assert [len(prompts) for prompts, _ in engine.asked] == [2, 2, 1, 1, 1, 1]


def test_an_id_beyond_the_tokenizers_entries_has_no_text(tokenizer):
    """Models have more ids than their tokenizer, and nothing keeps an engine from drawing one."""
    ids = tokenizer.encode("12")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, 10**6]) == "12"


def test_code_suites_need_isolation_before_anything_runs(cfg, suite_file, tokenizer, monkeypatch):
    monkeypatch.setattr(benchmark, "probe", lambda: Isolation("none", "tried"))
    with pytest.raises(EnvironmentProblem, match="cannot isolate"):
        load_suites(with_suite(cfg, suite_file("humaneval", [])), tokenizer)


def with_suite(cfg, suite):
    return replace(cfg, eval=replace(cfg.eval, suites=(suite,)), rollout=replace(cfg.rollout, max_prompt_tokens=300))
