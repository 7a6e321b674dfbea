"""Group relative policy optimisation: prompts with verifiable answers and a checkpoint -> checkpoint."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.prompts import PromptSet
from r1train.dist.seed import stream
from r1train.eval.generate import local_part
from r1train.log.result import StageResult
from r1train.model.gpt import R1Model
from r1train.reward.base import Score
from r1train.reward.score import Scorer
from r1train.rl.advantage import group_advantages
from r1train.rl.batch import PackedSamples, TrainSample, pack_samples, train_samples, with_extra
from r1train.rl.mismatch import logprob_gap
from r1train.rl.objective import GrpoObjective, LogprobObjective
from r1train.rl.reference import build_reference, refresh_reference
from r1train.rl.statistics import rollout_statistics
from r1train.rollout.engine import SamplingParams
from r1train.rollout.types import Group, append_rows, group_to_row
from r1train.stages.session import Session, session, stage_result
from r1train.stages.training import build_engine, policy_evals
from r1train.train.checkpoint import latest_checkpoint, load_weights, resume
from r1train.train.forward import forward_only
from r1train.train.loop import StepLog, save_if_due
from r1train.train.setup import Trainer, build_trainer
from r1train.train.step import train_step
from r1train.train.stop import StopSignal


@dataclass(frozen=True)
class Policy:
    """The policy in training and the frozen reference of its KL term."""

    trainer: Trainer
    reference: R1Model


def run(cfg: RunConfig) -> StageResult:
    """Alternate rollouts and updates until stage.steps updates are done; continues after the last checkpoint."""
    with session(cfg) as job, Scorer(cfg.reward) as scorer:
        policy = open_policy(job)
        trainer, stage = policy.trainer, cfg.stage
        prompts = PromptSet(
            stage.prompts, job.tokenizer, seed=cfg.seed, max_prompt_tokens=cfg.rollout.max_prompt_tokens
        )
        engine, stop = build_engine(job, trainer.module), StopSignal()
        with StepLog(trainer) as log:
            while trainer.state.step < stage.steps:
                started = time.monotonic()
                asked = prompts.take(trainer.state.position, stage.prompts_per_step * stage.minibatches_per_step)
                groups = engine.generate(local_part(asked), sampling(cfg, trainer), policy_version=trainer.state.step)
                scores = scorer.score([(group.prompt, sample.text) for group in groups for sample in group.samples])
                store_rollout(cfg, trainer, groups, scores)
                statistics = rollout_statistics(groups, scores)
                samples = train_samples(groups, advantages(groups, scores, cfg))
                minibatches = [
                    with_logprobs(job, policy, minibatch) for minibatch in split(samples, cfg, step=trainer.state.step)
                ]
                for minibatch in minibatches:
                    update(policy, log, minibatch, statistics, seconds=time.monotonic() - started)
                    started = time.monotonic()
                if trainer.state.step % stage.reference_refresh_steps == 0:
                    refresh_reference(policy.reference, trainer)
                save_if_due(trainer, stop, {"reference": policy.reference})
        return stage_result(job, policy_evals(job, trainer))


def open_policy(job: Session) -> Policy:
    """Trainer and reference from the run's last checkpoint, else both from the parent's weights."""
    trainer = build_trainer(job.cfg, job.device, total_steps=job.cfg.stage.steps)
    parent = latest_checkpoint(Path(job.cfg.stage.init_from))
    load_weights(trainer, parent)
    policy = Policy(trainer, build_reference(trainer))
    resume(trainer, {"reference": policy.reference})
    return policy


def sampling(cfg: RunConfig, trainer: Trainer) -> SamplingParams:
    return SamplingParams(
        samples_per_prompt=cfg.stage.samples_per_prompt,
        temperature=cfg.rollout.temperature,
        top_p=cfg.rollout.top_p,
        max_response_tokens=cfg.rollout.max_response_tokens,
        seed=cfg.seed,
        name=f"{cfg.step}/{trainer.state.step}",
    )


def advantages(groups: list[Group], scores: list[Score], cfg: RunConfig) -> torch.Tensor:
    """Advantage of every sample of this rank [S]; a sample whose grader failed gets 0 and counts in no statistic."""
    ids = [group.prompt.id for group in groups for _ in group.samples]
    return group_advantages(
        torch.tensor([score.value for score in scores]),
        ids,
        std=cfg.stage.advantage_std,
        valid=torch.tensor([score.error is None for score in scores], dtype=torch.bool),
    )


def split(samples: list[TrainSample], cfg: RunConfig, *, step: int) -> list[list[TrainSample]]:
    """This rank's samples in random minibatches of (nearly) equal size (R1: 8,192 outputs in 16 minibatches)."""
    rank = parallel_state.get_data_parallel_rank()
    order = stream(cfg.seed, "minibatches", cfg.step, step, rank).permutation(len(samples))
    parts = cfg.stage.minibatches_per_step
    return [[samples[item] for item in order[part::parts]] for part in range(parts)]


def with_logprobs(job: Session, policy: Policy, samples: list[TrainSample]) -> PackedSamples:
    """Pack a minibatch and add the log-probabilities of the rollout's policy and of the reference."""
    cfg, stage = job.cfg, job.cfg.stage
    packed = pack_samples(
        samples,
        seq_length=stage.seq_length,
        pad_id=job.tokenizer.pad_id,
        aggregation=stage.aggregation,
        max_response_tokens=cfg.rollout.max_response_tokens,
    )
    batches = [batch.to(job.device.torch_device) for batch in packed.batches]
    objective = LogprobObjective(cfg.rollout.temperature)
    batches = with_extra(batches, "old_logprobs", forward_only(policy.trainer.model, batches, objective))
    batches = with_extra(batches, "ref_logprobs", forward_only(policy.reference, batches, objective))
    return PackedSamples(batches, packed.counts)


def update(
    policy: Policy, log: StepLog, packed: PackedSamples, statistics: dict[str, float], *, seconds: float
) -> None:
    """One optimizer step on one minibatch; seconds: what the rollout took that this step has to carry."""
    started = time.monotonic()
    trainer, stage = policy.trainer, policy.trainer.cfg.stage
    gap = logprob_gap(packed.batches)
    objective = GrpoObjective(stage, trainer.cfg.rollout.temperature, num_tokens=packed.counts.tokens)
    result = train_step(trainer, packed.batches, objective)
    trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=stage.prompts_per_step)
    log.write(result, seconds=seconds + time.monotonic() - started, extra={**statistics, **gap})


def store_rollout(cfg: RunConfig, trainer: Trainer, groups: list[Group], scores: list[Score]) -> None:
    """This rank's samples and scores in <run>/rollouts, one file per rollout; a repeated rollout replaces its file."""
    if not parallel_state.is_pipeline_last_stage():
        return
    rank = parallel_state.get_data_parallel_rank()
    path = cfg.run_dir / "rollouts" / f"step_{trainer.state.step:08d}_dp_{rank:04d}.jsonl"
    partial = path.with_suffix(".tmp")
    partial.unlink(missing_ok=True)
    rest = iter(scores)
    append_rows(
        partial, [{**group_to_row(group), "scores": [next(rest).to_row() for _ in group.samples]} for group in groups]
    )
    os.replace(partial, path)
