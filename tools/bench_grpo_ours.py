"""Our side of tools/bench_grpo.py: rollouts and updates with the functions of the stage grpo, timed."""

from dataclasses import replace
from typing import Any

from bench_grpo_peers import Times, clock

from r1train.config.schema import RunConfig
from r1train.data.prompts import Prompt
from r1train.reward.score import Scorer
from r1train.rl.ask import Sampler, Turn, roll_out
from r1train.rollout.vllm import VllmEngine
from r1train.stages.grpo import Policy, minibatches_of, open_policy, update
from r1train.stages.session import Session, session
from r1train.stages.training import build_engine


class SamePrompts:
    """Stands for the stage's prompts: every rollout asks the same ones."""

    def __init__(self, prompts: list[Prompt]):
        self._prompts = prompts

    def take(self, position: int, count: int, *, late: int | None) -> list[Prompt]:
        assert count == len(self._prompts) and late is None, count
        return list(self._prompts)


def grpo_steps(cfg: RunConfig, prompts: list[Prompt]) -> Times:
    """stage.steps steps of one rollout and one update each, as the stage does them, without logs and checkpoints."""
    with session(cfg) as job, Scorer(cfg.reward) as scorer:
        # No token ends a response.
        job.tokenizer.roles = replace(job.tokenizer.roles, eos_id=-1)
        policy, times = open_policy(job), Times()
        engine = build_engine(job, policy.trainer.module)
        if not isinstance(engine, VllmEngine):
            put_clock(engine, times)
        sampler = Sampler(SamePrompts(prompts), engine, scorer, [], job.tokenizer)
        for _ in range(cfg.stage.steps):
            one_step(job, policy, sampler, times)
            if isinstance(engine, VllmEngine):
                times.add(generate=engine.seconds["generate"], push=engine.seconds["push"])
    return times


def one_step(job: Session, policy: Policy, sampler: Sampler, times: Times) -> None:
    trainer = policy.trainer
    started = clock()
    rollout = roll_out(trainer, sampler, Turn(trainer.state.step, 0))
    rolled_out = clock()
    (packed,) = minibatches_of(job, policy, rollout)
    prepared = clock()
    update(policy, packed, samples=rollout.asked)
    ended = clock()
    times.add(
        step=ended - started,
        rollout=rolled_out - started,
        old_logprobs=prepared - rolled_out,
        update=ended - prepared,
        train=ended - rolled_out,
    )


def put_clock(engine: Any, times: Times) -> None:
    """Book the seconds of every generate() of this engine."""
    generate = engine.generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        groups = generate(*args, **kwargs)
        times.add(generate=clock() - started)
        return groups

    engine.generate = timed
