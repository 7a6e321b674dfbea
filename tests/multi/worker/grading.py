"""Scores and a suite's verdicts of known answers: one rank of each replica grades, all of them know, rank 0 writes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from megatron.core import parallel_state

from r1train.config.schema_eval import EvalConfig, SuiteConfig
from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.dist.init import Device
from r1train.eval.benchmark import evaluate_suite
from r1train.eval.generate import Target, local_part
from r1train.reward.grader import Grader
from r1train.rl.replica_scorer import ReplicaScorer
from r1train.rl.watch import generate_and_score
from r1train.rollout.engine import SamplingParams
from r1train.rollout.types import Group, Sample

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2", "pp2_ep2", "tp2_pp2")
SIZE = 4
PROMPTS = [Prompt(f"p{number}", "gsm8k", f"{number}?", str(number), {}, (0, number)) for number in range(5)]
PARAMS = SamplingParams(samples_per_prompt=SIZE, temperature=1.0, top_p=1.0, max_response_tokens=8, seed=1, name="test")
REWARD = RewardConfig(name="test", accuracy=1.0, format=1.0, language=0.0, grader_timeout_s=8.0, grader_processes=0)
EVAL = EvalConfig(problems_per_task=1, samples_per_problem=1, temperature=1.0, top_p=1.0, max_response_tokens=8)


class Engine:
    """Sample n of prompt p answers n, without the tags where n is 3; samples end in another order than they have."""

    def generate(self, prompts, params, *, policy_version, watcher=None) -> list[Group]:
        groups = [self._group(prompt, policy_version) for prompt in prompts]
        for place, group in reversed(list(enumerate(groups))):
            for sample in reversed(group.samples):
                if watcher is not None:
                    watcher.finished(place, group.prompt, sample)
                    watcher.poll()
        return groups

    def _group(self, prompt: Prompt, version: int) -> Group:
        texts = [f"<think>so</think><answer>{index}</answer>" if index < 3 else "3" for index in range(SIZE)]
        samples = tuple(
            Sample(
                prompt_id=prompt.id,
                index=index,
                tokens=np.array([7, 1]),
                logprobs=np.zeros(2, dtype=np.float32),
                finish="eos",
                policy_version=version,
                text=text,
            )
            for index, text in enumerate(texts)
        )
        return Group(prompt=prompt, samples=samples)


class Counted:
    """Counts the answers that this rank's graders get."""

    def __init__(self) -> None:
        self.count, self._real = 0, Grader.submit

    def __enter__(self) -> "Counted":
        def submit(grader: Grader, item, **options) -> None:
            self.count += 1
            self._real(grader, item, **options)

        Grader.submit = submit  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Grader.submit = self._real  # type: ignore[method-assign]


def run(layout: str, device: Device, out: Path) -> dict:
    del device
    cfg = SimpleNamespace(seed=1, reward=REWARD, eval=EVAL)  # what evaluate_suite reads of a RunConfig
    mine = local_part(PROMPTS)
    with Counted() as scored, ReplicaScorer(cfg.reward) as scorer:
        pairs = generate_and_score(Engine(), scorer, mine, PARAMS, policy_version=3)
        again = scorer.score([(PROMPTS[1], group.samples[1].text) for group, _ in pairs])
    suite = SuiteConfig(name="numbers", path="x", kind="number", samples_per_problem=SIZE)
    target = Target(out / f"grading_{layout}", "x/step_00000003", policy_version=3)
    with Counted() as graded:
        report = evaluate_suite(cfg, Engine(), suite, PROMPTS, target)
    return {
        "dp_rank": parallel_state.get_data_parallel_rank(),
        "scores": {group.prompt.id: scores for group, scores in pairs},
        "again": again,
        "scored": scored.count,
        "report": report,
        "graded": graded.count,
    }
