"""Reward model: preference pairs or labelled responses and a checkpoint -> a model with a scalar head.

The held-out examples are scored at the end: <run>/eval/reward_model.json.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.config.schema_samples import RewardModelStage
from r1train.data.preferences import Example, PreferenceSet, Room, pack_examples, read_preferences, take_examples
from r1train.eval.generate import gather_groups
from r1train.log.atomic import write_atomically
from r1train.log.result import StageResult
from r1train.model.value_head import value_head, without_value_head
from r1train.reward.preference import Packing, score_samples
from r1train.reward.reward_model import ScoreObjective, area_under_curve, pair_accuracy
from r1train.stages.session import Session, session, stage_result
from r1train.train.batches import packed_micro_batches
from r1train.train.checkpoint import latest_checkpoint, load_weights, resume
from r1train.train.forward import MicroBatch
from r1train.train.loop import StepSource, train_loop
from r1train.train.setup import Trainer, build_trainer

REPORT = "reward_model.json"


def run(cfg: RunConfig) -> StageResult:
    """Train to stage.steps, then score the held-out examples. metrics.jsonl counts pairs or responses as tokens."""
    with session(cfg) as job:
        stage = cfg.stage
        examples = read_preferences(
            Path(stage.dataset),
            job.tokenizer,
            pairwise=stage.kind == "pairwise",
            scored=stage.scored,
            heldout_share=stage.heldout_share,
            room=Room(stage.seq_length, stage.max_sample_tokens),
        )
        trainer = open_trainer_with_head(job)
        objective = ScoreObjective(value_head(trainer.module), stage.kind)
        train_loop(trainer, StepSource(_batches(job, examples), samples=lambda _: stage.batch_size), objective)
        report = evaluate_examples(job, trainer, examples.heldout) if examples.heldout else {}
        if torch.distributed.get_rank() == 0:
            _write_report(cfg.run_dir, {**report, "train_examples": len(examples.train)})
        return replace(stage_result(job, {}, note=_note(report)), tokens=None)


def open_trainer_with_head(job: Session) -> Trainer:
    """A trainer at the run's last checkpoint; else the parent's weights under a new head."""
    trainer = build_trainer(job.cfg, job.device, total_steps=job.cfg.stage.steps, scalar_head=True)
    if not resume(trainer):
        with without_value_head(trainer.modules):
            load_weights(trainer, latest_checkpoint(Path(job.cfg.stage.init_from)))
    return trainer


def _batches(job: Session, examples: PreferenceSet):
    """This rank's share of the examples at a position, as micro-batches."""
    stage, pad_id = job.cfg.stage, job.tokenizer.pad_id
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()

    def batches(position: int, count: int) -> list[MicroBatch]:
        mine = take_examples(examples.train, position, count, seed=job.cfg.seed)[rank::size]
        rows = pack_examples(mine, seq_length=stage.seq_length, pad_id=pad_id)
        return packed_micro_batches(rows, seq_length=stage.seq_length, pad_id=pad_id)

    return batches


def evaluate_examples(job: Session, trainer: Trainer, heldout: list[Example]) -> dict[str, float | int | None]:
    """Numbers of the held-out examples over all ranks. Collective."""
    stage: RewardModelStage = job.cfg.stage
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = heldout[rank::size]
    packing = Packing(job.tokenizer, stage.seq_length, job.device.torch_device)
    flat = iter(score_samples(trainer.module, [sample for one in mine for sample in one.samples], packing))
    scores = gather_groups([[next(flat) for _ in one.samples] for one in mine])
    if stage.kind == "pairwise":
        chosen, rejected = [pair[0] for pair in scores], [pair[1] for pair in scores]
        margin = sum(a - b for a, b in scores) / len(scores)
        return {"pairs": len(scores), "pair_accuracy": pair_accuracy(chosen, rejected), "mean_margin": margin}
    values, labels = [one[0] for one in scores], [one.label for one in heldout]
    right = sum((value > 0) == (label == 1) for value, label in zip(values, labels, strict=True))
    return {
        "responses": len(values),
        "label_accuracy": right / len(values),
        "area_under_curve": area_under_curve(values, labels),
    }


def _note(report: dict[str, float | int | None]) -> str:
    """The held-out number for the stage table."""
    if not report:
        return ""
    what, count = ("pair", report["pairs"]) if "pairs" in report else ("label", report["responses"])
    return f"{100 * report[f'{what}_accuracy']:.1f} % of {count} held-out {what}s"


def _write_report(run_dir: Path, report: dict) -> None:
    path = run_dir / "eval" / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(report, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in report.items()), flush=True)
