"""What training stages share: a trainer that continues or starts from its parent, and the evaluation at the end."""

from pathlib import Path

from r1train.config.schema import GrpoStage
from r1train.eval.generate import Target, evaluate
from r1train.log.result import EvalSummary
from r1train.model.gpt import R1Model
from r1train.reward.score import check_tasks
from r1train.rollout.engine import Engine
from r1train.rollout.native import NativeEngine
from r1train.rollout.vllm import VllmEngine
from r1train.stages.session import Session
from r1train.train.checkpoint import latest_checkpoint, load_weights, resume
from r1train.train.setup import Trainer, build_trainer


def open_trainer(job: Session) -> Trainer:
    """A trainer at the run's last checkpoint; else with the parent's weights; else with initial weights."""
    check_evals(job)
    stage = job.cfg.stage
    trainer = build_trainer(job.cfg, job.device, total_steps=stage.steps)
    if not resume(trainer) and stage.init_from is not None:
        load_weights(trainer, latest_checkpoint(Path(stage.init_from)))
    return trainer


def check_evals(job: Session) -> None:
    """Before training: what would stop the evaluation after it (reward/score.py, check_tasks; a bad file)."""
    if job.cfg.evaluate_after:
        check_tasks(job.cfg.reward, {prompt.task for prompt in job.heldout.prompts})


def build_engine(job: Session, module: R1Model) -> Engine:
    """The generation engine on these weights."""
    cfg = job.cfg
    record_routes = isinstance(cfg.stage, GrpoStage) and cfg.rl.record_routing
    if cfg.rollout.engine == "vllm":
        return VllmEngine(cfg, module, job.tokenizer, record_routes=record_routes)
    return NativeEngine(
        module,
        job.tokenizer,
        batch_size=cfg.rollout.batch_size,
        record_routes=record_routes,
        cuda_graphs=cfg.rollout.cuda_graphs,
    )


def policy_evals(job: Session, trainer: Trainer, engine: Engine | None = None) -> dict[str, EvalSummary]:
    """Scores of the trained weights on the held-out problems, where the config asks for them.

    engine: one that is open already, None to build one.
    """
    if not job.cfg.evaluate_after:
        return {}
    engine = engine or build_engine(job, trainer.module)
    step = trainer.state.step
    # Not reused: an attempt that trained on must not find the numbers of the one before it.
    target = Target(job.cfg.run_dir / "eval", f"{job.cfg.step}/step_{step:08d}", policy_version=step, reuse=False)
    reports = evaluate(job.cfg, engine, list(job.heldout.prompts), target)
    return {report.task: report.summary() for report in reports}
