"""Evaluate the current weights: sample answers to problems, grade them, count."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.config.schema_eval import AnswerPlace
from r1train.data.prompts import Prompt
from r1train.dist.comm import gathered, of_rank
from r1train.eval.extract import normal_form
from r1train.eval.score import EvalReport, Outcome, make_report, write_report
from r1train.eval.store import HELDOUT_SAMPLES, eval_key, finished, write_samples
from r1train.reward.answer import find_answer
from r1train.reward.base import Score
from r1train.reward.score import check_tasks
from r1train.rl.replica_scorer import ReplicaScorer
from r1train.rl.watch import generate_and_score
from r1train.rollout.engine import Engine, SamplingParams
from r1train.rollout.types import Group, group_to_row, without_routes


@dataclass(frozen=True)
class Target:
    """What is evaluated and where its files go. checkpoint: <step id>/<folder>, for people and for eval_key.

    reuse: whether a report of the same key that is there already counts.
    """

    folder: Path
    checkpoint: str
    policy_version: int
    reuse: bool = True

    def finished(self, task: str, key: str) -> EvalReport | None:
        """The report of an earlier attempt, as rank 0 finds it. Collective."""
        return agreed(finished(self.folder, task, key) if self.reuse else None)


def local_part(prompts: list[Prompt]) -> list[Prompt]:
    """Every dp_size-th prompt, starting at dp_rank: this data-parallel rank's share."""
    return prompts[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]


def gather_groups[T](local: list[T]) -> list[T]:
    """The inverse of local_part on results: every rank's items, in the order of the prompts, on every rank."""
    return in_order(gathered(local, parallel_state.get_data_parallel_group()))


def gather_at_rank0[T](local: list[T]) -> list[T]:
    """gather_groups for rank 0 alone, [] elsewhere: samples are large, and only their writer needs all. Collective."""
    group = parallel_state.get_data_parallel_group()
    if 0 not in torch.distributed.get_process_group_ranks(group):
        return []
    parts: list[list[T]] | None = [[] for _ in range(group.size())] if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(local, parts, dst=0, group=group)
    return in_order(parts or [])


def in_order[T](parts: list[list[T]]) -> list[T]:
    """Items dealt in turn to the ranks, in their order before that."""
    missing = object()
    return [item for column in zip_longest(*parts, fillvalue=missing) for item in column if item is not missing]


def agreed[T](value: T) -> T:
    """Rank 0's value, on every rank: what is on disk must not be read differently by different ranks. Collective."""
    return of_rank(value, 0)


def evaluate(cfg: RunConfig, engine: Engine, prompts: list[Prompt], target: Target) -> list[EvalReport]:
    """Reports of the prepared held-out problems, per task, written by rank 0 with every sample. Collective.

    prompts: the first problems_per_task of each task are asked samples_per_problem times. Reports of an earlier attempt
    with the same inputs are taken as they are. Raises, before anything is generated, what check_tasks raises.
    """
    chosen: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        of_task = chosen.setdefault(prompt.task, [])
        if len(of_task) < cfg.eval.problems_per_task:
            of_task.append(prompt)
    keys = {task: eval_key(cfg, None, of_task, checkpoint=target.checkpoint) for task, of_task in chosen.items()}
    known = [report for task, key in keys.items() if (report := target.finished(task, key)) is not None]
    if len(known) == len(chosen):
        return known
    check_tasks(cfg.reward, chosen)
    params = SamplingParams(
        samples_per_prompt=cfg.eval.samples_per_problem,
        temperature=cfg.eval.temperature,
        top_p=cfg.eval.top_p,
        max_response_tokens=cfg.eval.max_response_tokens,
        seed=cfg.seed,
        name="eval",
    )
    everything = [prompt for of_task in chosen.values() for prompt in of_task]
    mine, version = local_part(everything), target.policy_version
    with ReplicaScorer(cfg.reward) as scorer:
        scored = generate_and_score(engine, scorer, mine, params, policy_version=version)
    outcomes = gather_groups([_outcomes(*pair, cfg.reward.answer_from) for pair in scored])
    rows = gather_at_rank0([_row(*pair) for pair in scored])
    by_prompt = {prompt.id: result for prompt, result in zip(everything, outcomes, strict=True)}
    reports = [
        make_report(task, {p.id: by_prompt[p.id] for p in of_task}, checkpoint=target.checkpoint, key=keys[task])
        for task, of_task in chosen.items()
    ]
    if torch.distributed.get_rank() == 0:
        target.folder.mkdir(parents=True, exist_ok=True)
        write_samples(target.folder / HELDOUT_SAMPLES, rows)
        for report in reports:
            write_report(target.folder, report)
    return reports


def _row(group: Group, scores: Sequence[Score]) -> dict[str, object]:
    return {**group_to_row(without_routes(group)), "scores": [score.to_row() for score in scores]}


def _outcomes(group: Group, scores: Sequence[Score], places: Sequence[AnswerPlace]) -> list[Outcome]:
    answers = [find_answer(sample.text, places) for sample in group.samples]
    return [
        Outcome(
            correct=score.parts.get("accuracy", 0.0) == 1.0,
            formatted=score.parts["format"] == 1.0,
            answer=None if answer is None else normal_form(answer, latex=False),
            response_tokens=len(sample.tokens),
            truncated=sample.truncated,
            error=score.error,
            timed_out=score.timed_out,
        )
        for sample, score, answer in zip(group.samples, scores, answers, strict=True)
    ]
