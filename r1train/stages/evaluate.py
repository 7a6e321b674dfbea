"""Evaluation of one checkpoint: pass@1 per task, and held-out samples to read."""

from pathlib import Path

from r1train.config.schema import RunConfig
from r1train.eval.generate import evaluate
from r1train.log.result import StageResult
from r1train.model.build import build_model
from r1train.stages.session import session, stage_result
from r1train.stages.training import build_engine
from r1train.train.checkpoint import latest_checkpoint, load_module


def run(cfg: RunConfig) -> StageResult:
    """Evaluate init_from's last checkpoint on every task of the held-out problems."""
    with session(cfg) as job:
        module = build_model(cfg, job.device)
        load_module(module, latest_checkpoint(Path(cfg.stage.init_from)))
        reports = evaluate(cfg, build_engine(job, module), list(job.heldout.prompts), policy_version=0)
        return stage_result(job, {report.task: report.summary() for report in reports})
