"""Group relative policy optimisation: prompts with verifiable answers and a checkpoint -> checkpoint."""

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.dist.comm import of_rank
from r1train.dist.init import is_rank0
from r1train.dist.seed import stream
from r1train.log.result import StageResult
from r1train.reward.score import check_tasks
from r1train.rl.advantage import group_advantages
from r1train.rl.age import policy_age
from r1train.rl.ask import Sampler
from r1train.rl.batch import PackedSamples, TrainSample, pack_samples, train_samples, with_extra, with_routes
from r1train.rl.deal import deal
from r1train.rl.dynamic_sampling import Rollout, ScoredGroup
from r1train.rl.late import open_preferences, open_prompts, with_late_start
from r1train.rl.mismatch import logprob_gap
from r1train.rl.objective import GrpoObjective, LogprobObjective
from r1train.rl.orders import open_order
from r1train.rl.reference import Reference
from r1train.rl.replica_scorer import ReplicaScorer
from r1train.rl.routing import flip_gauge, old_pass, reference_pass, replay_gauge, route_shape, update_pass
from r1train.rl.statistics import rollout_statistics
from r1train.rl.stops import GaugeStop, lines_beyond, remember_stop, still_stopped
from r1train.stages.saving import save_unless_there, saved_at_failure
from r1train.stages.session import Session, session, stage_result
from r1train.stages.training import build_engine, check_evals, policy_evals
from r1train.train.checkpoint import latest_checkpoint, load_weights, resume
from r1train.train.forward import forward_only
from r1train.train.loop import StepLog, save_if_due
from r1train.train.micro_batch import MicroBatch
from r1train.train.offload import TrainingState
from r1train.train.setup import Trainer, build_trainer
from r1train.train.step import StepResult, skipped_step, train_step
from r1train.train.stop import StopSignal

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Policy:
    """The policy in training and the frozen reference of its KL term, None where that term weighs nothing."""

    trainer: Trainer
    reference: Reference | None

    @property
    def extra_modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds besides the policy."""
        return {} if self.reference is None else {"reference": self.reference.model}

    def reference_on_device(self) -> AbstractContextManager[object]:
        """The reference's passes belong inside."""
        return nullcontext() if self.reference is None else self.reference.on_device()


def run(cfg: RunConfig) -> StageResult:
    """Alternate rollouts and updates until stage.steps updates are done; continues after the last checkpoint."""
    with session(cfg) as job, ReplicaScorer(cfg.reward) as scorer:
        prompts = open_prompts(cfg, job.tokenizer)
        check_tasks(cfg.reward, prompts.tasks)
        check_evals(job)
        policy = open_policy(job)
        trainer, stage = policy.trainer, cfg.stage
        preferences = open_preferences(cfg, job.tokenizer, job.device)
        sampler = Sampler(prompts, build_engine(job, trainer.module), scorer, preferences, job.tokenizer)
        order, stop = open_order(trainer, sampler), StopSignal()
        at_rest = TrainingState(trainer).on_host if cfg.rl.offload_during_rollout else nullcontext
        with StepLog(trainer) as log:
            while trainer.state.step < stage.steps:
                started = time.monotonic()
                trainer.state = with_late_start(cfg, trainer.state)
                with saved_at_failure(trainer, policy.extra_modules), at_rest():
                    rollout = order.take()
                    minibatches = minibatches_of(job, policy, rollout)
                # Before the first update: what is saved here has not learned from a rollout that cannot be trusted.
                stop_if_beyond(policy, [packed.gauges for packed in minibatches])
                results = []
                for packed, count in zip(minibatches, prompts_of_updates(rollout.asked, cfg), strict=True):
                    results.append(update(policy, packed, samples=count))
                    log.write(results[-1], seconds=time.monotonic() - started, extra=packed.gauges)
                    started = time.monotonic()
                if policy.reference is not None and trainer.state.step % stage.reference_refresh_steps == 0:
                    policy.reference.refresh(trainer)
                stop_if_beyond(policy, [result.logs for result in results], learned=True)
                save_if_due(trainer, stop, policy.extra_modules)
        # vLLM takes one sleeping engine per process; a native one costs nothing and need not record experts.
        engine = sampler.engine if cfg.rollout.engine == "vllm" else None
        with at_rest():
            evals = policy_evals(job, trainer, engine)
        return stage_result(job, evals)


def open_policy(job: Session) -> Policy:
    """Trainer and reference from the run's last checkpoint, else both from the parent's weights."""
    reason = of_rank(still_stopped(job.cfg.run_dir, job.cfg.rl.stop_if) if is_rank0() else None, 0)
    if reason is not None:
        raise GaugeStop(reason)
    trainer = build_trainer(job.cfg, job.device, total_steps=job.cfg.stage.steps)
    # Every shape's coefficient is pre-training's: it would move a policy that has nothing to learn from its groups.
    trainer.model_config.moe_aux_loss_coeff = job.cfg.rl.sequence_loss_coef
    parent = latest_checkpoint(Path(job.cfg.stage.init_from))
    load_weights(trainer, parent)
    rl = job.cfg.rl
    policy = Policy(trainer, Reference(trainer, offload=rl.reference_offload) if rl.kl_coef > 0 else None)
    resume(trainer, policy.extra_modules)
    return policy


def minibatches_of(job: Session, policy: Policy, rollout: Rollout) -> list[PackedSamples]:
    """The rollout as one minibatch per update, with all that is known before the first of them. Collective."""
    cfg, step = job.cfg, policy.trainer.state.step
    statistics = rollout_statistics(
        [one.group for one in rollout.generated], [score for one in rollout.generated for score in one.scores]
    )
    samples = train_samples([one.group for one in rollout.chosen], advantages(rollout.chosen, cfg), cfg.rl.overlong)
    minibatches = []
    with policy.reference_on_device():
        for done, part in enumerate(split(samples, cfg, step=step)):
            age = policy_age(part, step=step + done)
            packed = with_logprobs(job, policy, deal(part))
            minibatches.append(replace(packed, gauges={**statistics, **rollout.gauges, **packed.gauges, **age}))
    return minibatches


def advantages(rollout: list[ScoredGroup], cfg: RunConfig) -> torch.Tensor:
    """Advantage of every sample of this rank [S]; a sample whose grader failed gets 0 and counts in no statistic."""
    scores = [score for one in rollout for score in one.scores]
    return group_advantages(
        torch.tensor([score.value for score in scores]),
        [str(one.place) for one in rollout for _ in one.scores],
        std=cfg.rl.advantage_std,
        valid=torch.tensor([score.error is None for score in scores], dtype=torch.bool),
    )


def prompts_of_updates(asked: int, cfg: RunConfig) -> list[int]:
    """How far each update of a rollout moves the position in the prompts: what no group was kept of, with the first."""
    each, updates = cfg.stage.prompts_per_step, cfg.stage.minibatches_per_step
    return [asked - each * (updates - 1), *[each] * (updates - 1)]


def split(samples: list[TrainSample], cfg: RunConfig, *, step: int) -> list[list[TrainSample]]:
    """This rank's samples in random minibatches of (nearly) equal size (R1: 8,192 outputs in 16 minibatches)."""
    rank = parallel_state.get_data_parallel_rank()
    order = stream(cfg.seed, "minibatches", cfg.step, step, rank).permutation(len(samples))
    parts = cfg.stage.minibatches_per_step
    # Whose parts are the larger ones differs, or the first minibatches of all ranks together would be the largest.
    return [[samples[item] for item in order[(part + rank) % parts :: parts]] for part in range(parts)]


def with_logprobs(job: Session, policy: Policy, samples: list[TrainSample]) -> PackedSamples:
    """Pack a minibatch and add the log-probabilities of the rollout's policy and of the reference.

    Where no rank has a sample there is nothing to add to.
    """
    cfg, stage = job.cfg, job.cfg.stage
    packed = pack_samples(
        samples,
        seq_length=stage.seq_length,
        pad_id=job.tokenizer.pad_id,
        aggregation=cfg.rl.aggregation,
        max_response_tokens=cfg.rollout.max_response_tokens,
    )
    if not packed.batches:
        return packed
    batches = with_routes(packed.batches, samples, shape=route_shape(policy.trainer.module, cfg.rl))
    batches = [batch.to(job.device.torch_device) for batch in batches]
    gauges = packed.gauges
    if cfg.rl.old_logprobs == "pass":
        batches, measured = _with_old_logprobs(policy, batches)
        gauges = {**gauges, **measured}
    if policy.reference is not None:
        batches, measured = _with_reference_logprobs(policy.reference, batches, cfg)
        gauges = {**gauges, **measured}
    return PackedSamples(batches, packed.counts, gauges)


def _with_old_logprobs(policy: Policy, batches: list[MicroBatch]) -> tuple[list[MicroBatch], dict[str, float]]:
    """Of the policy as it is, with the experts it recorded where those are replayed; and how far the engine is off."""
    trainer, cfg = policy.trainer, policy.trainer.cfg
    routing = old_pass(trainer.module, cfg.rl)
    objective = LogprobObjective(cfg.rollout.temperature, routing=routing)
    batches = with_extra(batches, "old_logprobs", forward_only(trainer.model, batches, objective))
    gauges = logprob_gap(batches)
    if routing is None:
        return batches, gauges
    counts = routing.counts()
    gauges |= flip_gauge(counts)
    gauges |= replay_gauge(counts, "old") if cfg.rl.routing_replay == "engine" else {}
    return with_extra(batches, "routes", routing.recorded), gauges


def _with_reference_logprobs(
    reference: Reference, batches: list[MicroBatch], cfg: RunConfig
) -> tuple[list[MicroBatch], dict[str, float]]:
    routing = reference_pass(reference.model, cfg.rl)
    objective = LogprobObjective(cfg.rollout.temperature, routing=routing)
    batches = with_extra(batches, "ref_logprobs", forward_only(reference.model, batches, objective))
    return batches, replay_gauge(routing.counts(), "reference") if routing is not None else {}


def update(policy: Policy, packed: PackedSamples, *, samples: int) -> StepResult:
    """One optimizer step on one minibatch, skipped where that is empty; samples: prompts that the position moves by."""
    trainer, rl = policy.trainer, policy.trainer.cfg.rl
    if not packed.batches:
        result = skipped_step(trainer)
        trainer.state = trainer.state.after_step(tokens=0, samples=samples)
        if is_rank0():
            _log.warning("step %d: no sample to learn from, the update is skipped", trainer.state.step)
        return result
    routing = update_pass(trainer.module, rl)
    objective = GrpoObjective(rl, trainer.cfg.rollout.temperature, num_tokens=packed.counts.tokens, routing=routing)
    gap: dict[str, float] = {}

    def stop_before_update() -> None:
        gap.update(objective.logprob_gap())
        stop_if_beyond(policy, [gap])

    result = train_step(trainer, packed.batches, objective, before_update=stop_before_update)
    trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=samples)
    replayed = replay_gauge(routing.counts(), "update") if routing is not None else {}
    return replace(result, logs={**result.logs, **gap, **objective.ratio_quantiles(), **replayed})


def stop_if_beyond(policy: Policy, gauges: list[dict[str, float]], *, learned: bool = False) -> None:
    """Save the state and end the run where a gauge is beyond rl.stop_if. Between rollouts only, on every rank alike.

    learned: the gauges are of updates that the state holds; a new start could not measure them again.
    """
    trainer, cfg = policy.trainer, policy.trainer.cfg
    lines = lines_beyond(gauges, cfg.rl.stop_if)
    if not lines:
        return
    step = trainer.state.step
    save_unless_there(trainer, policy.extra_modules)
    if learned and is_rank0():
        remember_stop(cfg.run_dir, gauges, cfg.rl.stop_if, step=step)
    fix = "Fix: find the cause (docs/rl.md), or raise the limit; starting the stage again continues from there"
    if learned:
        fix += ", once the limit is another"
    raise GaugeStop(f"{cfg.step}: {'; '.join(lines)}. State saved at step {step}. {fix}")
