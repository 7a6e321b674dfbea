"""Pairs stage: stored samples and a judge -> preference pairs for a reward model. Single process, no GPU."""

import json
import time
from pathlib import Path

from r1train.config.schema import RunConfig
from r1train.data.files import write_rows
from r1train.dist.init import is_rank0
from r1train.errors import DataError
from r1train.log.atomic import write_atomically
from r1train.log.result import StageResult
from r1train.reward.pairs import (
    Pair,
    balanced,
    clear_pairs,
    compared_by_judge,
    compared_by_rule,
    pairs_of_prompt,
)
from r1train.reward.samples import read_samples

OUTPUT = "pairs.jsonl"
REPORT = "report.json"


def run(cfg: RunConfig) -> StageResult:
    """Write <run>/pairs.jsonl (id, task, prompt, chosen, rejected, difference) and <run>/report.json.

    Raises DataError when no pair is left; JudgeFailed, and what the judge has said then is kept.
    """
    started, stage = time.monotonic(), cfg.stage
    if not is_rank0():  # a launcher may start one process per GPU
        return StageResult(id=cfg.step, title=cfg.step, stage=stage.name, seconds=0.0)
    samples = read_samples(Path(stage.samples_from))
    pairs = [pair for found in samples.values() for pair in pairs_of_prompt(found, stage, seed=cfg.seed)]
    outcomes: dict[str, int] = {}
    if stage.prefer == "judge":
        compared, outcomes = compared_by_judge(pairs, stage, seed=cfg.seed, store=cfg.run_dir / "judged.jsonl")
    else:
        compared = compared_by_rule(pairs, stage.prefer)
    kept, removed = clear_pairs(compared, stage.least_difference)
    if stage.balance_lengths:
        fair = balanced(kept)
        removed["to balance lengths"] = len(kept) - len(fair)
        kept = fair
    if not kept:
        raise DataError(
            f"{stage.samples_from}: none of {len(pairs)} pairs of {len(samples)} prompts is left ({dict(removed)}). "
            "Fix: more samples per prompt, a higher temperature, or a smaller stage.least_difference"
        )
    write_rows(cfg.run_dir / OUTPUT, (_row(pair) for pair in kept))
    report = {
        "prompts": len(samples),
        "pairs": len(pairs),
        "judge": outcomes,
        "removed": dict(removed),
        "written": len(kept),
        "mean excess tokens of the chosen": sum(pair.excess_tokens for pair in kept) / len(kept),
    }
    write_atomically(cfg.run_dir / REPORT, json.dumps(report, indent=1) + "\n")
    return StageResult(
        id=cfg.step,
        title=cfg.step,
        stage=stage.name,
        seconds=time.monotonic() - started,
        note=f"{len(kept):,} pairs",
    )


def _row(pair: Pair) -> dict:
    return {
        "id": pair.id,
        "task": pair.first.task,
        "prompt": pair.first.question,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "difference": pair.difference,
        "policy_version": pair.first.policy_version,
    }
