"""Rejection sampling and cold start from a model: prompts and a checkpoint -> an SFT set of responses that verify.

R1 sections 2.3.1 and 2.3.3. Sampling (stages/sampling.py) fills <run>/samples; the rest (stages/curate.py) reads it.
"""

from pathlib import Path

import torch

from r1train.config.schema import RunConfig
from r1train.log.result import StageResult
from r1train.stages.curate import Report, write_set
from r1train.stages.sampling import sample_missing, what_is_asked
from r1train.stages.session import session, stage_result
from r1train.train.checkpoint import latest_checkpoint


def run(cfg: RunConfig) -> StageResult:
    """Sample every prompt several times; then write <run>/sft.jsonl, and report.json: what each filter removed.

    One part of several (stage.parts) ends with its samples.
    """
    with session(cfg) as job:
        asked = what_is_asked(job, latest_checkpoint(Path(cfg.stage.init_from)))
        sample_missing(job, asked)
        report: Report | None = None
        if cfg.stage.parts == 1 and torch.distributed.get_rank() == 0:
            report = write_set(cfg, asked)
        note = "" if report is None else f"{report.more['kept']:,} of {report.sampled:,} samples kept"
        return stage_result(job, {}, note=note)
