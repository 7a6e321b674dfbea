"""Group relative policy optimisation: prompts with verifiable answers and a checkpoint -> checkpoint."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.mix import PromptMix
from r1train.data.prompts import Prompt
from r1train.dist.seed import stream
from r1train.eval.generate import local_part
from r1train.log.checkpoints import checkpoints
from r1train.log.result import StageResult
from r1train.model.gpt import R1Model
from r1train.reward.base import Score
from r1train.reward.preference import Preference
from r1train.reward.score import Scorer
from r1train.rl.advantage import group_advantages
from r1train.rl.batch import PackedSamples, TrainSample, pack_samples, train_samples, with_extra, with_routes
from r1train.rl.dynamic_sampling import Rollout, ScoredGroup, collect
from r1train.rl.gather import common_places, gather_objects
from r1train.rl.late import late_prompts_count, open_preferences, open_prompts, preferred
from r1train.rl.mismatch import logprob_gap
from r1train.rl.objective import GrpoObjective, LogprobObjective
from r1train.rl.overlong import shaped_score
from r1train.rl.reference import build_reference, refresh_reference
from r1train.rl.routing import flip_gauge, old_pass, reference_pass, replay_gauge, route_shape, update_pass
from r1train.rl.statistics import rollout_statistics
from r1train.rl.stops import GaugeStop, beyond_limits
from r1train.rl.watch import RolloutWatcher
from r1train.rollout.checksum import value_sums
from r1train.rollout.engine import Engine, SamplingParams
from r1train.rollout.journal import Journal
from r1train.rollout.types import Group, append_rows, group_to_row
from r1train.stages.session import Session, session, stage_result
from r1train.stages.training import build_engine, policy_evals
from r1train.train.checkpoint import latest_checkpoint, load_weights, resume, save_checkpoint
from r1train.train.forward import forward_only
from r1train.train.loop import StepLog, save_if_due
from r1train.train.setup import Trainer, build_trainer
from r1train.train.step import StepResult, train_step
from r1train.train.stop import StopSignal


@dataclass(frozen=True)
class Policy:
    """The policy in training and the frozen reference of its KL term, None where that term weighs nothing."""

    trainer: Trainer
    reference: R1Model | None

    @property
    def extra_modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds besides the policy."""
        return {} if self.reference is None else {"reference": self.reference}


@dataclass(frozen=True)
class Sampler:
    """Prompts, the engine that answers them, and the graders and reward models that score the answers."""

    prompts: PromptMix
    engine: Engine
    scorer: Scorer
    preferences: list[Preference]


def run(cfg: RunConfig) -> StageResult:
    """Alternate rollouts and updates until stage.steps updates are done; continues after the last checkpoint."""
    with session(cfg) as job, Scorer(cfg.reward) as scorer:
        policy = open_policy(job)
        trainer, stage = policy.trainer, cfg.stage
        prompts = open_prompts(cfg, job.tokenizer)
        scorer.check_tasks(prompts.tasks)
        preferences = open_preferences(cfg, job.tokenizer, job.device)
        sampler, stop = Sampler(prompts, build_engine(job, trainer.module), scorer, preferences), StopSignal()
        with StepLog(trainer) as log:
            while trainer.state.step < stage.steps:
                started = time.monotonic()
                rollout = roll_out(trainer, sampler)
                statistics = rollout_statistics(
                    [one.group for one in rollout.generated],
                    [score for one in rollout.generated for score in one.scores],
                )
                samples = train_samples(
                    [one.group for one in rollout.chosen], advantages(rollout.chosen, cfg), cfg.rl.overlong
                )
                minibatches = [
                    with_logprobs(job, policy, minibatch) for minibatch in split(samples, cfg, step=trainer.state.step)
                ]
                gauges = [{**statistics, **rollout.gauges, **packed.gauges} for packed in minibatches]
                # Before the first update: what is saved here has not learned from a rollout that cannot be trusted.
                stop_if_beyond(policy, gauges)
                taken = prompts_of_updates(rollout.asked, cfg)
                results = []
                for packed, known, count in zip(minibatches, gauges, taken, strict=True):
                    results.append(update(policy, packed, samples=count))
                    log.write(results[-1], seconds=time.monotonic() - started, extra=known)
                    started = time.monotonic()
                if policy.reference is not None and trainer.state.step % stage.reference_refresh_steps == 0:
                    refresh_reference(policy.reference, trainer)
                stop_if_beyond(policy, [result.logs for result in results])
                save_if_due(trainer, stop, policy.extra_modules)
        # vLLM takes one sleeping engine per process; a native one costs nothing and need not record experts.
        engine = sampler.engine if cfg.rollout.engine == "vllm" else None
        return stage_result(job, policy_evals(job, trainer, engine))


def open_policy(job: Session) -> Policy:
    """Trainer and reference from the run's last checkpoint, else both from the parent's weights."""
    trainer = build_trainer(job.cfg, job.device, total_steps=job.cfg.stage.steps)
    parent = latest_checkpoint(Path(job.cfg.stage.init_from))
    load_weights(trainer, parent)
    policy = Policy(trainer, build_reference(trainer) if job.cfg.rl.kl_coef > 0 else None)
    resume(trainer, policy.extra_modules)
    return policy


def roll_out(trainer: Trainer, sampler: Sampler) -> Rollout:
    """The groups of the next minibatches_per_step updates, sampled and scored with the weights as they are."""
    cfg, stage = trainer.cfg, trainer.cfg.stage
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    # The engine and the sums read the weights, and no forward of the trainer has brought them up to date yet.
    trainer.gather_weights()
    journal = open_journal(trainer)

    def ask(start: int, count: int, attempt: int) -> list[ScoredGroup]:
        late = late_prompts_count(cfg, trainer.state.step + 1)
        mine: list[Prompt] = local_part(sampler.prompts.take(trainer.state.position + start, count, late=late))
        asked = {start + rank + size * index: prompt for index, prompt in enumerate(mine)}
        groups, scores = answer(trainer, sampler, asked, journal, attempt)
        scores = preferred(groups, scores, sampler.preferences, step=trainer.state.step + 1)
        budget = cfg.rollout.max_response_tokens
        return [
            ScoredGroup(
                place,
                groups[place],
                tuple(
                    shaped_score(one, score, cfg.rl.overlong, budget=budget)
                    for one, score in zip(groups[place].samples, scores[place], strict=True)
                ),
            )
            for place in asked
        ]

    wanted = stage.prompts_per_step * stage.minibatches_per_step
    rollout = collect(ask, gather_objects, wanted=wanted, cfg=cfg.rl.sampling)
    store_rollout(cfg, trainer, rollout.generated)
    if journal is not None:
        journal.remove()
    return rollout


def answer(
    trainer: Trainer, sampler: Sampler, asked: dict[int, Prompt], journal: Journal | None, attempt: int
) -> tuple[dict[int, Group], dict[int, tuple[Score, ...]]]:
    """Groups and scores of the prompts asked, by place: what a killed attempt stored, and the rest from the engine.

    Graders work while the engine generates.
    """
    params = sampling(trainer.cfg, trainer, attempt=attempt)
    stored = {} if journal is None else journal.found(attempt)
    stored = common_places({place for place, prompt in asked.items() if stored.get(place) == prompt.id})
    groups = {} if journal is None else {place: journal.group(attempt, place, asked[place]) for place in sorted(stored)}
    rest = [place for place in asked if place not in groups]
    watcher = RolloutWatcher(
        sampler.scorer, rest, journal=journal, attempt=attempt, group_size=params.samples_per_prompt
    )
    for place, group in groups.items():
        watcher.known(place, group)
    generated = sampler.engine.generate(
        [asked[place] for place in rest], params, policy_version=trainer.state.step, watcher=watcher
    )
    return {**groups, **dict(zip(rest, generated, strict=True))}, watcher.scores()


def open_journal(trainer: Trainer) -> Journal | None:
    """Where this rank's finished groups of the coming rollout go, None where they are not kept."""
    cfg = trainer.cfg
    if not cfg.rollout.store_groups:
        return None
    dp_rank, pp_rank = parallel_state.get_data_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    name = f"step_{trainer.state.step:08d}_dp_{dp_rank:04d}_pp_{pp_rank:02d}.part.jsonl"
    return Journal(
        cfg.run_dir / "rollouts" / name,
        sampling(cfg, trainer, attempt=0),
        policy_version=trainer.state.step,
        weights=value_sums(trainer.module.named_parameters()),
    )


def sampling(cfg: RunConfig, trainer: Trainer, *, attempt: int) -> SamplingParams:
    """Every try of a rollout draws other numbers: with few prompts a later one asks the same prompt again."""
    name = f"{cfg.step}/{trainer.state.step}"
    return SamplingParams(
        samples_per_prompt=cfg.stage.samples_per_prompt,
        temperature=cfg.rollout.temperature,
        top_p=cfg.rollout.top_p,
        max_response_tokens=cfg.rollout.max_response_tokens,
        seed=cfg.seed,
        name=name if attempt == 0 else f"{name}/{attempt}",
    )


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
    return [[samples[item] for item in order[part::parts]] for part in range(parts)]


def with_logprobs(job: Session, policy: Policy, samples: list[TrainSample]) -> PackedSamples:
    """Pack a minibatch and add the log-probabilities of the rollout's policy and of the reference."""
    cfg, stage = job.cfg, job.cfg.stage
    packed = pack_samples(
        samples,
        seq_length=stage.seq_length,
        pad_id=job.tokenizer.pad_id,
        aggregation=cfg.rl.aggregation,
        max_response_tokens=cfg.rollout.max_response_tokens,
    )
    module, model = policy.trainer.module, policy.trainer.model
    batches = with_routes(packed.batches, samples, shape=route_shape(module, cfg.rl))
    batches = [batch.to(job.device.torch_device) for batch in batches]
    routing = old_pass(module, cfg.rl)
    objective = LogprobObjective(cfg.rollout.temperature, routing=routing)
    batches = with_extra(batches, "old_logprobs", forward_only(model, batches, objective))
    gauges = logprob_gap(batches)
    if routing is not None:
        counts = routing.counts()
        gauges |= flip_gauge(counts)
        gauges |= replay_gauge(counts, "old") if cfg.rl.routing_replay == "engine" else {}
        batches = with_extra(batches, "routes", routing.recorded)
    if policy.reference is not None:
        routing = reference_pass(policy.reference, cfg.rl)
        objective = LogprobObjective(cfg.rollout.temperature, routing=routing)
        batches = with_extra(batches, "ref_logprobs", forward_only(policy.reference, batches, objective))
        gauges |= replay_gauge(routing.counts(), "reference") if routing is not None else {}
    return PackedSamples(batches, packed.counts, gauges)


def update(policy: Policy, packed: PackedSamples, *, samples: int) -> StepResult:
    """One optimizer step on one minibatch; samples: prompts that the position moves on by."""
    trainer, rl = policy.trainer, policy.trainer.cfg.rl
    routing = update_pass(trainer.module, rl)
    objective = GrpoObjective(rl, trainer.cfg.rollout.temperature, num_tokens=packed.counts.tokens, routing=routing)
    result = train_step(trainer, packed.batches, objective)
    trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=samples)
    replayed = replay_gauge(routing.counts(), "update") if routing is not None else {}
    return replace(result, logs={**result.logs, **objective.ratio_quantiles(), **replayed})


def stop_if_beyond(policy: Policy, gauges: list[dict[str, float]]) -> None:
    """Save the state and end the run where a gauge is beyond rl.stop_if. Between rollouts only, on every rank alike."""
    trainer, cfg = policy.trainer, policy.trainer.cfg
    lines = list(dict.fromkeys(line for values in gauges for line in beyond_limits(values, cfg.rl.stop_if)))
    if not lines:
        return
    step = trainer.state.step
    # Before the first update there is nothing to save: the optimizer is empty and the weights are the parent's.
    if step > 0 and not any(folder.name == f"step_{step:08d}" for folder in checkpoints(cfg.run_dir)):
        save_checkpoint(trainer, policy.extra_modules)
    saved = f"State saved at step {step}" if step > 0 else "No update was done"
    fix = "Fix: find the cause (docs/rl.md), or raise the limit; starting the stage again continues from there"
    raise GaugeStop(f"{cfg.step}: {'; '.join(lines)}. {saved}. {fix}")


def store_rollout(cfg: RunConfig, trainer: Trainer, rollout: list[ScoredGroup]) -> None:
    """This rank's samples and scores in <run>/rollouts, one file per rollout; a repeated rollout replaces its file."""
    if not parallel_state.is_pipeline_last_stage():
        return
    rank = parallel_state.get_data_parallel_rank()
    path = cfg.run_dir / "rollouts" / f"step_{trainer.state.step:08d}_dp_{rank:04d}.jsonl"
    partial = path.with_suffix(".tmp")
    partial.unlink(missing_ok=True)
    rows = [{**group_to_row(one.group), "scores": [score.to_row() for score in one.scores]} for one in rollout]
    append_rows(partial, rows)
    os.replace(partial, path)
