"""Rejection sampling: prompts and a checkpoint -> an SFT set of responses that verify (R1 section 2.3.3)."""

import json
import os
from collections import Counter
from pathlib import Path

import torch

from r1train.config.schema import RunConfig
from r1train.data.files import read_rows
from r1train.data.prompts import PromptSet
from r1train.errors import DataError
from r1train.eval.generate import gather_groups, local_part
from r1train.log.result import StageResult
from r1train.model.build import build_model
from r1train.reward.base import Score
from r1train.reward.score import Scorer
from r1train.rollout.engine import SamplingParams
from r1train.rollout.types import Group, Sample
from r1train.stages.session import session, stage_result
from r1train.stages.training import build_engine
from r1train.train.checkpoint import latest_checkpoint, load_module

OUTPUT = "sft.jsonl"
REPORT = "filters.json"


def run(cfg: RunConfig) -> StageResult:
    """Sample every prompt several times, keep what passes, write <run>/sft.jsonl and what each filter removed."""
    with session(cfg) as job:
        stage = cfg.stage
        module = build_model(cfg, job.device)
        parent = latest_checkpoint(Path(stage.init_from))
        load_module(module, parent)
        prompts = PromptSet(
            stage.prompts, job.tokenizer, seed=cfg.seed, max_prompt_tokens=cfg.rollout.max_prompt_tokens
        )
        params = SamplingParams(
            samples_per_prompt=stage.samples_per_prompt,
            temperature=cfg.rollout.temperature,
            top_p=cfg.rollout.top_p,
            max_response_tokens=cfg.rollout.max_response_tokens,
            seed=cfg.seed,
            name=cfg.step,
        )
        asked = local_part(prompts.take(0, min(stage.num_prompts, len(prompts))))
        groups = build_engine(job, module).generate(asked, params, policy_version=0)
        with Scorer(cfg.reward) as scorer:
            judged = [judge(group, scorer) for group in groups]
        judged = gather_groups(judged)
        if torch.distributed.get_rank() == 0:
            write_set(cfg, judged, parent=parent)
        return stage_result(job, {})


def judge(group: Group, scorer: Scorer) -> list[tuple[dict[str, object], str]]:
    """Every sample of a group as an SFT row, and the first reason to drop it ("kept" if there is none)."""
    scores = scorer.score([(group.prompt, sample.text) for sample in group.samples])
    seen: set[str] = set()
    rows = []
    for sample, score in zip(group.samples, scores, strict=True):
        rows.append((_row(group, sample, score), _verdict(sample, score, seen)))
        seen.add(sample.text)
    return rows


def _verdict(sample: Sample, score: Score, seen: set[str]) -> str:
    """Why a sample is dropped: in the order of the checks, the first that applies."""
    if score.error is not None:
        return "grader error"
    if sample.truncated:
        return "truncated"
    if score.parts["format"] != 1.0:
        return "format"
    if score.parts["accuracy"] != 1.0:
        return "wrong"
    if score.parts.get("language", 1.0) < 1.0:
        return "mixed language"
    return "duplicate" if sample.text in seen else "kept"


def _row(group: Group, sample: Sample, score: Score) -> dict[str, object]:
    return {
        "id": f"{group.prompt.id}/{sample.index}",
        "task": group.prompt.task,
        "prompt": group.prompt.question,
        "response": sample.text,
        "parts": score.parts,
    }


def write_set(cfg: RunConfig, judged: list[list[tuple[dict[str, object], str]]], *, parent: Path) -> None:
    """Kept rows, at most keep_per_prompt of a prompt, plus the mixed-in rows; counts per filter beside them.

    Raises DataError when nothing is left to train on.
    """
    counts: Counter[str] = Counter()
    kept: list[dict[str, object]] = []
    for rows in judged:
        of_prompt = [row for row, verdict in rows if verdict == "kept"]
        counts.update(verdict for _, verdict in rows)
        counts["over keep_per_prompt"] += max(0, len(of_prompt) - cfg.stage.keep_per_prompt)
        kept += [{**row, "sampled_from": str(parent)} for row in of_prompt[: cfg.stage.keep_per_prompt]]
    if not kept:
        raise DataError(
            f"rejection sampling kept none of {sum(counts.values())} samples ({dict(counts)}). "
            "Fix: start from a stronger checkpoint, or raise stage.num_prompts or stage.samples_per_prompt"
        )
    mixed = read_rows(Path(cfg.stage.mix), {"id": str, "prompt": str, "response": str}) if cfg.stage.mix else []
    partial = cfg.run_dir / f"{OUTPUT}.tmp"
    partial.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *mixed]), encoding="utf-8")
    os.replace(partial, cfg.run_dir / OUTPUT)
    report = {**counts, "written": len(kept) + len(mixed), "mixed in": len(mixed)}
    (cfg.run_dir / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
