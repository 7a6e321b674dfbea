"""Files of an evaluation: one JSON per checkpoint and suite, its samples beside it; finished ones are kept."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from r1train.config.schema import RunConfig
from r1train.config.schema_eval import PasskeyConfig, SuiteConfig
from r1train.data.prompts import Prompt
from r1train.eval.score import EvalReport, read_report, write_report

HELDOUT_SAMPLES = "samples.jsonl"


def samples_path(folder: Path, suite: str) -> Path:
    """Where the samples of a suite are stored; those of the held-out problems are in samples.jsonl."""
    return folder / f"samples_{suite}.jsonl"


def eval_key(
    cfg: RunConfig, setting: SuiteConfig | PasskeyConfig | None, prompts: Iterable[Prompt], *, checkpoint: str
) -> str:
    """Hash of what decides a report's numbers: the checkpoint's name, the prompts as they are asked, the settings.

    setting: the suite or passkey; None for the prepared held-out problems, whose answers are found as the reward says.
    Paths and machine settings have no part.
    """
    sampling = {
        name: value
        for name, value in asdict(cfg.eval).items()
        if name in ("samples_per_problem", "temperature", "top_p", "max_response_tokens")
    }
    own = {"answer_from": cfg.reward.answer_from} if setting is None else asdict(setting)
    for name in ("path", "problems", "batch_tokens"):
        own.pop(name, None)
    digest = hashlib.sha256(json.dumps([checkpoint, cfg.seed, sampling, own], sort_keys=True).encode())
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.token_ids, prompt.answer, prompt.metadata]).encode())
    return digest.hexdigest()


def finished(folder: Path, task: str, key: str) -> EvalReport | None:
    """The report of an earlier attempt, None where there is none or it is of other inputs."""
    path = folder / f"{task}.json"
    report = read_report(path) if path.is_file() else None
    return report if report is not None and report.key == key else None


def store(folder: Path, report: EvalReport, rows: Iterable[dict[str, object]]) -> None:
    """Samples first, then the report, each atomically: a report means that all of it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_samples(samples_path(folder, report.task), rows)
    write_report(folder, report)


def write_samples(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """One JSON line per problem, under a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(temporary, path)
