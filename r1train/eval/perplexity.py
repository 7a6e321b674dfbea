"""Held-out perplexity: the loss of the next token on documents that were left out of training."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from megatron.core import parallel_state

from r1train.config.layout import micro_batch_rounds
from r1train.config.schema import RunConfig
from r1train.data.heldout import Windows, heldout_windows
from r1train.data.tokenizer import Tokenizer
from r1train.dist.init import Device
from r1train.train.batches import dense_micro_batches
from r1train.train.forward import LmObjective, MicroBatch, forward_only
from r1train.train.step import reduce_logs

FILE_NAME = "perplexity.json"


class Measurable(Protocol):
    """A model in its chunks: a Trainer, or Loaded."""

    @property
    def cfg(self) -> RunConfig: ...
    @property
    def device(self) -> Device: ...
    @property
    def chunks(self) -> Sequence[torch.nn.Module]: ...
    @property
    def modules(self) -> Sequence[torch.nn.Module]: ...


@dataclass(frozen=True)
class Loaded:
    """A model that does not train."""

    cfg: RunConfig
    device: Device
    module: torch.nn.Module

    @property
    def chunks(self) -> list[torch.nn.Module]:
        return [self.module]

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self.module]


@dataclass(frozen=True, kw_only=True)
class CorpusPerplexity:
    """loss: mean of -ln p(token) over `tokens` held-out tokens of one corpus; perplexity: exp(loss)."""

    loss: float
    perplexity: float
    tokens: int


def heldout_perplexity(trainer: Measurable, tokenizer: Tokenizer) -> float | None:
    """Mean held-out loss, corpora weighted as in training; every corpus in <run>/eval/perplexity.json. Collective.

    None, and no file, where data.heldout_fraction left nothing out. Uses the stage's seq_length and micro_batch_size.
    """
    stage = trainer.cfg.stage
    return corpora_perplexity(
        trainer,
        tokenizer,
        seq_length=stage.seq_length,
        micro_batch_size=stage.micro_batch_size,
        folder=trainer.cfg.run_dir / "eval",
    )


def loaded_perplexity(loaded: Loaded, tokenizer: Tokenizer, folder: Path) -> float | None:
    """The same for a checkpoint under evaluation: windows of eval.perplexity_length tokens, one at a time."""
    cfg = loaded.cfg
    length = cfg.eval.window_length(cfg.model.distinct_positions)
    return corpora_perplexity(loaded, tokenizer, seq_length=length, micro_batch_size=1, folder=folder)


def corpora_perplexity(
    trainer: Measurable, tokenizer: Tokenizer, *, seq_length: int, micro_batch_size: int, folder: Path
) -> float | None:
    """Perplexity of every corpus that has held-out documents, into <folder>/perplexity.json; the weighted loss."""
    cfg = trainer.cfg
    corpora: dict[str, CorpusPerplexity] = {}
    for corpus in cfg.data.corpora:
        if corpus.weight > 0:
            windows = heldout_windows(
                Path(cfg.data.dir) / "corpus",
                corpus.name,
                tokenizer,
                seq_length=seq_length,
                max_tokens=cfg.eval.perplexity_tokens,
            )
            if windows is not None:
                corpora[corpus.name] = measure(trainer, windows, micro_batch_size=micro_batch_size)
    if not corpora:
        return None
    loss = weighted_loss(corpora, {corpus.name: corpus.weight for corpus in cfg.data.corpora})
    if torch.distributed.get_rank() == 0:
        write_perplexity(folder, corpora, loss)
    return loss


def measure(trainer: Measurable, windows: Windows, *, micro_batch_size: int) -> CorpusPerplexity:
    """Loss of the main head over all data-parallel ranks' windows. Collective."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    padded = windows.padded(size * micro_batch_size * micro_batch_rounds(trainer.cfg.parallel))
    device = trainer.device.torch_device
    batches = [
        MicroBatch(batch.tokens, batch.labels, batch.positions, mask, None, {}).to(device)
        for batch, mask in zip(
            dense_micro_batches(padded.tokens[rank::size], micro_batch_size),
            padded.mask[rank::size].split(micro_batch_size),
            strict=True,
        )
    ]
    for module in trainer.modules:
        module.eval()
    objective = LmObjective()
    losses = forward_only(list(trainer.chunks), batches, objective)
    # Other pipeline stages than the last have no losses; reduce_logs tells them the result.
    sums = [objective.loss(loss, batch) for loss, batch in zip(losses, batches, strict=bool(losses))]
    logs, count = reduce_logs(sums, device)
    return CorpusPerplexity(loss=logs["loss"], perplexity=math.exp(logs["loss"]), tokens=count)


def weighted_loss(corpora: dict[str, CorpusPerplexity], weights: dict[str, float]) -> float:
    """Mean of the corpora's losses by their share in training: what the training loss is compared with."""
    total = math.fsum(weights[name] for name in corpora)
    return math.fsum(weights[name] * corpus.loss for name, corpus in corpora.items()) / total


def write_perplexity(folder: Path, corpora: dict[str, CorpusPerplexity], loss: float) -> None:
    """<folder>/perplexity.json, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"loss": loss, "perplexity": math.exp(loss), "corpora": {n: asdict(c) for n, c in corpora.items()}}
    temporary = folder / (FILE_NAME + ".tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / FILE_NAME)
