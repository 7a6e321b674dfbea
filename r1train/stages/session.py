"""What every stage on processes begins and ends with: device, groups, seeds, logs, trainer, final evaluation."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from r1train.config.schema import RunConfig
from r1train.data.prompts import PromptSet
from r1train.data.tokenizer import Tokenizer
from r1train.dist.init import Device, close_processes, init_processes, select_device
from r1train.dist.seed import seed_all
from r1train.log.logger import setup_logging
from r1train.log.metrics import FILE_NAME, read_metrics
from r1train.log.result import EvalSummary, StageResult


@dataclass(frozen=True)
class Session:
    """An open job: its config, this process's device, the tokenizer, and when this attempt began (monotonic s)."""

    cfg: RunConfig
    device: Device
    tokenizer: Tokenizer
    started: float

    @property
    def heldout(self) -> PromptSet:
        """Held-out problems, disjoint from everything that is trained on."""
        return PromptSet(
            Path(self.cfg.data.dir) / "prompts" / "heldout.jsonl",
            self.tokenizer,
            seed=self.cfg.seed,
            max_prompt_tokens=self.cfg.rollout.max_prompt_tokens,
        )


@contextmanager
def session(cfg: RunConfig) -> Iterator[Session]:
    """Join the job's processes; leave them when the stage ends without an error.

    After an error nothing is waited for: the launcher ends the other processes.
    """
    started = time.monotonic()
    device = select_device(cfg.cluster)
    init_processes(device, cfg.parallel, cfg.cluster)
    seed_all(cfg.seed)
    # The modules imported so far never become garbage: without them in every collection a small step is 10 % faster.
    gc.collect()
    gc.freeze()
    setup_logging(cfg.run_dir, rank=torch.distributed.get_rank())
    yield Session(cfg, device, Tokenizer.load(Path(cfg.data.dir) / "tokenizer"), started)
    close_processes()


def stage_result(
    session: Session, evals: dict[str, EvalSummary], *, heldout_loss: float | None = None, note: str = ""
) -> StageResult:
    """The stage's row: numbers of the last step from metrics.jsonl, time of all attempts.

    note: see StageResult; without one, how the scores of the reward models went.
    """
    cfg = session.cfg
    path = cfg.run_dir / FILE_NAME
    rows = read_metrics(path) if path.is_file() else []
    in_steps = sum(row["time/step_s"] for row in rows)
    this_attempt = time.monotonic() - session.started
    return StageResult(
        id=cfg.step,
        title=cfg.step,
        stage=cfg.stage.name,
        steps=rows[-1]["step"] if rows else None,
        tokens=rows[-1]["tokens"] if rows else None,
        seconds=max(in_steps, this_attempt),
        loss=rows[-1]["loss"] if rows else None,
        heldout_loss=heldout_loss,
        evals=evals,
        main_task=cfg.data.tasks[0].name if cfg.data.tasks else next(iter(evals), None),
        note=note or _preferences(rows),
    )


def _preferences(rows: list[dict]) -> str:
    """Mean score of each reward model in the first and the last rollout that it counted in: "helpful 0.60 to 0.81"."""
    prefix = "reward/preference/"
    names = [name for name in rows[-1] if name.startswith(prefix)] if rows else []
    scored = {name: [row[name] for row in rows if name in row] for name in names}
    return ", ".join(f"{name.removeprefix(prefix)} {one[0]:.2f} to {one[-1]:.2f}" for name, one in scored.items())
