"""Evaluate the current weights: sample answers to held-out problems, grade them, count."""

from itertools import zip_longest

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.prompts import Prompt
from r1train.eval.score import EvalReport, Outcome, make_report, write_report
from r1train.reward.format import extract_answer
from r1train.reward.score import Scorer
from r1train.rollout.engine import Engine, SamplingParams
from r1train.rollout.types import Group, append_rows, group_to_row


def local_part(prompts: list[Prompt]) -> list[Prompt]:
    """Every dp_size-th prompt, starting at dp_rank: this data-parallel rank's share."""
    return prompts[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]


def gather_groups[T](local: list[T]) -> list[T]:
    """The inverse of local_part on results: every rank's items, in the order of the prompts, on every rank."""
    group = parallel_state.get_data_parallel_group()
    parts: list[list[T]] = [[] for _ in range(group.size())]
    torch.distributed.all_gather_object(parts, local, group=group)
    missing = object()
    return [item for column in zip_longest(*parts, fillvalue=missing) for item in column if item is not missing]


def evaluate(cfg: RunConfig, engine: Engine, prompts: list[Prompt], *, policy_version: int) -> list[EvalReport]:
    """Reports per task, written to <run>/eval by rank 0 together with every sample. Collective over all ranks.

    prompts: the held-out problems; the first problems_per_task of each task are asked samples_per_problem times.
    """
    chosen: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        of_task = chosen.setdefault(prompt.task, [])
        if len(of_task) < cfg.eval.problems_per_task:
            of_task.append(prompt)
    params = SamplingParams(
        samples_per_prompt=cfg.eval.samples_per_problem,
        temperature=cfg.eval.temperature,
        top_p=cfg.eval.top_p,
        max_response_tokens=cfg.eval.max_response_tokens,
        seed=cfg.seed,
        name="eval",
    )
    everything = [prompt for of_task in chosen.values() for prompt in of_task]
    local = engine.generate(local_part(everything), params, policy_version=policy_version)
    with Scorer(cfg.reward) as scorer:
        outcomes = gather_groups([_outcomes(group, scorer) for group in local])
    groups = gather_groups([group_to_row(group) for group in local])
    by_prompt = {prompt.id: result for prompt, result in zip(everything, outcomes, strict=True)}
    reports = [make_report(task, {p.id: by_prompt[p.id] for p in of_task}) for task, of_task in chosen.items()]
    if torch.distributed.get_rank() == 0:
        folder = cfg.run_dir / "eval"
        for report in reports:
            write_report(folder, report)
        samples = folder / "samples.jsonl"
        samples.unlink(missing_ok=True)
        append_rows(samples, groups)
    return reports


def _outcomes(group: Group, scorer: Scorer) -> list[Outcome]:
    scores = scorer.score([(group.prompt, sample.text) for sample in group.samples])
    return [
        Outcome(
            correct=score.parts.get("accuracy", 0.0) == 1.0,
            formatted=score.parts["format"] == 1.0,
            answer=extract_answer(sample.text),
            response_tokens=len(sample.tokens),
            truncated=sample.truncated,
            error=score.error,
        )
        for sample, score in zip(group.samples, scores, strict=True)
    ]
