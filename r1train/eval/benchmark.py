"""Benchmark suites and passkey retrieval on the current weights."""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.config.schema_eval import PasskeyConfig, SuiteConfig
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.eval.generate import Target, gather_at_rank0, gather_groups, local_part
from r1train.eval.grade import GRADER_TASK, VOTING, Judged, SuiteGrader, instruction_rates
from r1train.eval.passkey import TASK, batches, found_key, grid, passkey_prompts
from r1train.eval.score import EvalReport, Outcome, make_report
from r1train.eval.store import eval_key, store
from r1train.eval.suites import load_suite
from r1train.reward.base import Score
from r1train.reward.isolation import require_isolation
from r1train.reward.jail import probe
from r1train.rl.gather import decides, from_deciding_rank
from r1train.rollout.engine import Engine, SamplingParams
from r1train.rollout.types import Group, group_to_row


def load_suites(cfg: RunConfig, tokenizer: Tokenizer) -> list[tuple[SuiteConfig, list[Prompt]]]:
    """Every suite's prompts, before anything is generated: the last file's mistake must not show after hours.

    Raises DataError for a bad file, EnvironmentProblem for code where this host cannot isolate programs.
    """
    if any(GRADER_TASK.get(suite.kind) == "code" for suite in cfg.eval.suites):
        require_isolation(probe(), allow_unisolated=cfg.reward.code.allow_unisolated)
    return [
        (
            suite,
            load_suite(suite, tokenizer, max_prompt_tokens=suite.max_prompt_tokens or cfg.rollout.max_prompt_tokens),
        )
        for suite in cfg.eval.suites
    ]


def suite_params(cfg: RunConfig, suite: SuiteConfig) -> SamplingParams:
    """The suite's own sampling, eval's where it says nothing."""
    return SamplingParams(
        samples_per_prompt=suite.samples_per_problem or cfg.eval.samples_per_problem,
        temperature=cfg.eval.temperature if suite.temperature is None else suite.temperature,
        top_p=cfg.eval.top_p if suite.top_p is None else suite.top_p,
        max_response_tokens=suite.max_response_tokens or cfg.eval.max_response_tokens,
        seed=cfg.seed,
        name=f"eval/{suite.name}",
    )


def evaluate_suite(
    cfg: RunConfig, engine: Engine, suite: SuiteConfig, prompts: list[Prompt], target: Target
) -> EvalReport:
    """One suite's report, written by rank 0 with every sample; an earlier attempt's is taken as it is. Collective."""
    key = eval_key(cfg, suite, prompts, checkpoint=target.checkpoint)
    known = target.finished(suite.name, key)
    if known is not None:
        return known
    mine, params, version = local_part(prompts), suite_params(cfg, suite), target.policy_version
    with SuiteGrader(suite, cfg.reward) as grader:
        local = engine.generate(mine, params, policy_version=version, watcher=grader if decides() else None)
        by_place = from_deciding_rank(grader.verdicts())
    judged = [by_place[place] for place in range(len(mine))]
    verdicts = gather_groups(judged)
    rows = gather_at_rank0([suite_row(*pair) for pair in zip(local, judged, strict=True)])
    report = suite_report(suite, prompts, verdicts, target=target, key=key)
    if torch.distributed.get_rank() == 0:
        store(target.folder, report, rows)
    return report


def suite_report(
    suite: SuiteConfig, prompts: Sequence[Prompt], verdicts: Sequence[list[Judged]], *, target: Target, key: str
) -> EvalReport:
    """Counts of a suite's verdicts, one list per prompt."""
    outcomes = {
        prompt.id: [judged.outcome for judged in of_prompt] for prompt, of_prompt in zip(prompts, verdicts, strict=True)
    }
    return make_report(
        suite.name,
        outcomes,
        votes=suite.kind in VOTING,
        details=instruction_rates([judged for of_prompt in verdicts for judged in of_prompt]),
        checkpoint=target.checkpoint,
        key=key,
    )


def suite_row(group: Group, judged: list[Judged]) -> dict[str, object]:
    """A group with its verdicts, as tools/show_rollouts.py reads it."""
    return {**group_to_row(group), "scores": [one.to_row() for one in judged]}


def evaluate_passkey(
    cfg: RunConfig, engine: Engine, passkey: PasskeyConfig, tokenizer: Tokenizer, target: Target
) -> EvalReport:
    """Accuracy per length and depth, in the report's details. Collective; files as for a suite."""
    prompts = passkey_prompts(passkey, tokenizer, seed=cfg.seed)
    key = eval_key(cfg, passkey, prompts, checkpoint=target.checkpoint)
    known = target.finished(TASK, key)
    if known is not None:
        return known
    params = SamplingParams(
        samples_per_prompt=1,
        temperature=0.0,
        top_p=1.0,
        max_response_tokens=passkey.max_response_tokens,
        seed=cfg.seed,
        name=f"eval/{TASK}",
    )
    ranks = parallel_state.get_data_parallel_world_size()
    outcomes: list[Outcome] = []
    rows: list[dict[str, object]] = []
    for part in batches(prompts, tokens=passkey.batch_tokens, ranks=ranks):
        local = engine.generate(local_part(part), params, policy_version=target.policy_version)
        found = [_passkey_outcome(group) for group in local]
        outcomes += gather_groups(found)
        rows += gather_at_rank0([_passkey_row(*pair) for pair in zip(local, found, strict=True)])
    report = make_report(
        TASK,
        {prompt.id: [outcome] for prompt, outcome in zip(prompts, outcomes, strict=True)},
        votes=False,
        details=grid(prompts, [outcome.correct for outcome in outcomes]),
        checkpoint=target.checkpoint,
        key=key,
    )
    if torch.distributed.get_rank() == 0:
        store(target.folder, report, rows)
    return report


def _passkey_outcome(group: Group) -> Outcome:
    (sample,) = group.samples
    return Outcome(
        correct=found_key(sample, group.prompt),
        formatted=True,
        answer=None,
        response_tokens=len(sample.tokens),
        truncated=sample.truncated,
        error=None,
    )


def _passkey_row(group: Group, outcome: Outcome) -> dict[str, object]:
    right = float(outcome.correct)
    return {**group_to_row(group), "scores": [Score(right, {"accuracy": right}, None).to_row()]}
