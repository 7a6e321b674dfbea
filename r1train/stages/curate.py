"""From scored samples to an SFT set: filters, judge, choice per prompt, rewriting, copies, review, mixing, a report."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from r1train.config.schema import RunConfig
from r1train.config.schema_samples import RejectStage
from r1train.data.decontaminate import NgramFilter, evaluation_file, evaluation_texts
from r1train.data.files import check_unique, read_rows, write_rows
from r1train.data.mix import mixed_rows, rows_for_share
from r1train.data.near_duplicate import NearDuplicates
from r1train.data.prompts import Prompt
from r1train.data.review import export_review, import_review
from r1train.errors import DataError
from r1train.log.atomic import write_atomically
from r1train.reward.candidate import Candidate
from r1train.reward.chat_client import ChatClient, ask_all
from r1train.reward.filters import KEPT, best, passing, reworded, verdict
from r1train.reward.format import extract_answer
from r1train.reward.judge import correctness_question, read_correctness, read_rewriting, rewriting_question
from r1train.reward.samples import read_samples
from r1train.stages.sampling import Asked

OUTPUT = "sft.jsonl"
REPORT = "report.json"
REVIEW = "review.jsonl"


@dataclass
class Report:
    """Counts of one run: what every filter removed, and what else happened to the rows."""

    prompts: int
    sampled: int
    removed: Counter[str] = field(default_factory=Counter)
    more: dict[str, object] = field(default_factory=dict)

    def to_row(self) -> dict[str, object]:
        return {"prompts": self.prompts, "sampled": self.sampled, "removed": dict(self.removed), **self.more}


def write_set(cfg: RunConfig, asked: Asked) -> Report:
    """Write <run>/sft.jsonl and <run>/report.json from the stored samples; returns the latter.

    Raises DataError when nothing is left to train on, an id stands twice, or rows wait for review; JudgeFailed. The
    samples and every answer of a judge stay: the same run continues from there.
    """
    wanted = {prompt.id for prompt in asked.prompts}
    samples = [found for found in read_samples(cfg.run_dir).values() if found[0].prompt_id in wanted]
    report = Report(len(samples), sum(map(len, samples)))
    prompts = {prompt.id: prompt for prompt in asked.prompts}
    chosen = _choose(cfg, samples, prompts, report)
    rewritten = _rewritten(cfg, chosen, prompts, report)
    rows = [_row(cfg, rewritten.get(one.id, one), asked, is_rewritten=one.id in rewritten) for one in chosen]
    _stop_if_empty(rows, report)
    rows = _without_copies(cfg.stage, rows, report)
    rows = _reviewed(cfg, rows, report)
    _stop_if_empty(rows, report)
    report.more |= {"kept": len(rows), "kept by task": dict(Counter(row["task"] for row in rows))}
    report.more["prompts without a kept sample"] = len(samples) - len({row["prompt_id"] for row in rows})
    rows += _mixed_in(cfg, len(rows), report)
    check_unique([row["id"] for row in rows], cfg.run_dir / OUTPUT)
    report.more["written"] = len(rows)
    write_atomically(cfg.run_dir / REPORT, json.dumps(report.to_row(), indent=1) + "\n")
    write_rows(cfg.run_dir / OUTPUT, rows)
    return report


def _choose(
    cfg: RunConfig, samples: list[list[Candidate]], prompts: dict[str, Prompt], report: Report
) -> list[Candidate]:
    """The samples that pass filters and judge, at most keep_per_prompt of a prompt."""
    stage, passed = cfg.stage, []
    for of_prompt in samples:
        kept, removed = passing(of_prompt, stage.filters)
        passed.append(kept)
        report.removed += removed
    if stage.judge is not None:
        passed = _judged(cfg, passed, prompts, report)
    chosen = [best(of_prompt, stage.keep_per_prompt, stage.keep_by) for of_prompt in passed]
    over = sum(map(len, passed)) - sum(map(len, chosen))
    report.removed += Counter({"over keep_per_prompt": over})
    return [one for of_prompt in chosen for one in of_prompt]


def _judged(
    cfg: RunConfig, passed: list[list[Candidate]], prompts: dict[str, Prompt], report: Report
) -> list[list[Candidate]]:
    """The samples that the judge calls correct, given the reference."""
    questions = {
        one.id: correctness_question(one.question, prompts[one.prompt_id].answer, extract_answer(one.text) or one.text)
        for of_prompt in passed
        for one in of_prompt
    }
    found, outcomes = ask_all(
        ChatClient(cfg.stage.judge),
        questions,
        lambda _, reply: read_correctness(reply),
        store=cfg.run_dir / "judged.jsonl",
    )
    report.more["judge"] = outcomes
    report.removed["judge: incorrect"] = sum(not right for right in found.values())
    report.removed["judge: no verdict"] = len(questions) - len(found)
    return [[one for one in of_prompt if found.get(one.id)] for of_prompt in passed]


def _row(cfg: RunConfig, one: Candidate, asked: Asked, *, is_rewritten: bool) -> dict:
    """The SFT row, with where it comes from: judge, rewriter and reviewed are null where nobody was asked."""
    return {
        "id": one.id,
        "task": one.task,
        "prompt": one.question,
        "response": one.text,
        "parts": one.score.parts,
        "prompt_id": one.prompt_id,
        "provenance": {
            "source": "sampled",
            "model": cfg.model.name,
            "checkpoint": str(asked.parent),
            "policy_version": one.policy_version,
            "sample": one.index,
            "seed": asked.params.seed,
            "temperature": asked.params.temperature,
            "score": one.score.value,
            "tokens": one.tokens,
            "judge": cfg.stage.judge.model if cfg.stage.judge is not None else None,
            "rewriter": cfg.stage.rewrite.model if is_rewritten else None,
            "reviewed": None,
        },
    }


def _rewritten(
    cfg: RunConfig, chosen: list[Candidate], prompts: dict[str, Prompt], report: Report
) -> dict[str, Candidate]:
    """The samples, by id, that have a readable version of their response, with that version.

    One that lost layout or answer is asked again; one that does not pass the filters that the sample passed is counted.
    Either way the sample keeps its own words.
    """
    if cfg.stage.rewrite is None or not chosen:
        return {}
    answers = {one.id: extract_answer(one.text) for one in chosen}
    texts, outcomes = ask_all(
        ChatClient(cfg.stage.rewrite),
        {one.id: rewriting_question(one.question, one.text) for one in chosen},
        lambda key, reply: read_rewriting(reply, answer=answers[key]),
        store=cfg.run_dir / "rewritten.jsonl",
    )
    found = [
        reworded(one, texts[one.id], prompts[one.prompt_id], repetition_words=cfg.reward.repetition_words)
        for one in chosen
        if one.id in texts
    ]
    verdicts = {one.id: verdict(one, cfg.stage.filters) for one in found}
    report.more["rewrite"] = outcomes
    report.more["rewritten, not taken"] = dict(Counter(name for name in verdicts.values() if name != KEPT))
    return {one.id: one for one in found if verdicts[one.id] == KEPT}


def _noted(row: dict, **more: object) -> dict:
    return {**row, "provenance": {**row["provenance"], **more}}


def _without_copies(stage: RejectStage, rows: list[dict], report: Report) -> list[dict]:
    """Rows that neither nearly copy an earlier response nor share an n-gram with an evaluation set."""
    if stage.near_duplicate is not None:
        seen = NearDuplicates(stage.near_duplicate)
        kept = [row for row in rows if seen.add(row["response"])]
        report.removed["near duplicate"] = len(rows) - len(kept)
        rows = kept
    if stage.decontaminate:
        evaluation = NgramFilter(
            evaluation_texts(map(evaluation_file, stage.decontaminate)), n=stage.decontaminate_words
        )
        kept = [row for row in rows if evaluation.find(row["prompt"] + "\n" + row["response"]) is None]
        report.removed["in an evaluation set"] = len(rows) - len(kept)
        rows = kept
    return rows


def _reviewed(cfg: RunConfig, rows: list[dict], report: Report) -> list[dict]:
    """Rows as people decided in <run>/review.jsonl, which gets those rows that it lacks."""
    if not cfg.stage.review:
        return rows
    path = cfg.run_dir / REVIEW
    export_review(path, rows)
    reviewed = import_review(path, rows)
    report.more["review"] = reviewed.counts
    before = {row["id"]: row["response"] for row in rows}
    return [_noted(row, reviewed="edit" if row["response"] != before[row["id"]] else "accept") for row in reviewed.rows]


def _mixed_in(cfg: RunConfig, kept: int, report: Report) -> list[dict]:
    """Rows of stage.mix, so many that they have their share of the set, each with its file and line.

    What a row says of itself already stays as provenance.before. seed: of the choice among the rows.
    """
    stage = cfg.stage
    if stage.mix is None:
        return []
    found = read_rows(Path(stage.mix), {"id": str, "prompt": str, "response": str})
    place = {"source": "mixed in", "file": stage.mix, "seed": cfg.seed}
    rows = [
        {**row, "provenance": {**place, "line": line, "before": row.get("provenance")}}
        for line, row in enumerate(found, start=1)
    ]
    wanted = len(rows) if stage.mix_share is None else rows_for_share(kept, stage.mix_share)
    added = mixed_rows(rows, wanted, seed=cfg.seed)
    report.more |= {"mixed in": len(added), "mixed share": len(added) / (kept + len(added)), "mix wanted": wanted}
    return added


def _stop_if_empty(rows: list[dict], report: Report) -> None:
    if not rows:
        raise DataError(
            f"rejection sampling kept none of {report.sampled} samples ({dict(report.removed)}). "
            "Fix: start from a stronger checkpoint, or raise stage.num_prompts or stage.samples_per_prompt"
        )
