"""Evaluation of checkpoints: held-out problems, benchmark suites, passkey retrieval, held-out perplexity.

One JSON per checkpoint and suite in <run>/eval (of several checkpoints: <run>/eval/<checkpoint>), samples beside it.
What an earlier attempt finished is not done again.
"""

from pathlib import Path

from r1train.config.schema import RunConfig
from r1train.config.schema_eval import SuiteConfig
from r1train.data.corpus_check import check_heldout
from r1train.data.prompts import Prompt
from r1train.eval.benchmark import evaluate_passkey, evaluate_suite, load_suites
from r1train.eval.generate import Target, evaluate
from r1train.eval.perplexity import Loaded, loaded_perplexity
from r1train.eval.score import EvalReport
from r1train.log.checkpoints import checkpoints
from r1train.log.result import StageResult
from r1train.model.build import build_model
from r1train.rollout.engine import Engine
from r1train.stages.session import Session, session, stage_result
from r1train.stages.training import build_engine
from r1train.train.checkpoint import latest_checkpoint, load_module

Suites = list[tuple[SuiteConfig, list[Prompt]]]


def run(cfg: RunConfig) -> StageResult:
    """Evaluate init_from's last checkpoint, or all that it kept; the stage's row has the last one's numbers."""
    with session(cfg) as job:
        # Before anything is generated: perplexity comes last.
        for corpus in cfg.data.corpora:
            if corpus.weight > 0:
                check_heldout(Path(cfg.data.dir) / "corpus" / corpus.name, job.tokenizer)
        suites = load_suites(cfg, job.tokenizer)
        parent = Path(cfg.stage.init_from)
        last = latest_checkpoint(parent)
        loaded = Loaded(cfg, job.device, build_model(cfg, job.device))
        # One for all checkpoints: vLLM takes one sleeping engine per process, and follows the weights by their step.
        engine = build_engine(job, loaded.module)
        if cfg.stage.checkpoints == "all":
            for checkpoint in checkpoints(parent)[:-1]:
                evaluate_checkpoint(job, loaded, engine, suites, checkpoint)
        reports, heldout_loss = evaluate_checkpoint(job, loaded, engine, suites, last)
        evals = {report.task: report.summary() for report in reports}
        return stage_result(job, evals, heldout_loss=heldout_loss)


def evaluate_checkpoint(
    job: Session, loaded: Loaded, engine: Engine, suites: Suites, checkpoint: Path
) -> tuple[list[EvalReport], float | None]:
    """Every report of one checkpoint, and its held-out loss (None without held-out documents). Collective."""
    cfg = job.cfg
    load_module(loaded.module, checkpoint, use_ema=cfg.stage.use_ema)
    target = target_of(cfg, checkpoint)
    # Without tasks the set of problems is an empty file.
    reports = evaluate(cfg, engine, list(job.heldout.prompts) if cfg.data.tasks else [], target)
    for suite, prompts in suites:
        reports.append(evaluate_suite(cfg, engine, suite, prompts, target))
    if cfg.eval.passkey is not None:
        reports.append(evaluate_passkey(cfg, engine, cfg.eval.passkey, job.tokenizer, target))
    return reports, loaded_perplexity(loaded, job.tokenizer, target.folder)


def target_of(cfg: RunConfig, checkpoint: Path) -> Target:
    """Where this checkpoint's files go."""
    folder = cfg.run_dir / "eval"
    name = f"{Path(cfg.stage.init_from).name}/{checkpoint.name}" + ("/ema" if cfg.stage.use_ema else "")
    return Target(
        folder if cfg.stage.checkpoints == "last" else folder / checkpoint.name,
        name,
        policy_version=int(checkpoint.name.removeprefix("step_")),
    )
