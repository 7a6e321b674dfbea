"""Held-out perplexity: the loss of the next token on documents that were left out of training."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.data.heldout import Windows, heldout_windows
from r1train.data.tokenizer import Tokenizer
from r1train.train.batches import dense_micro_batches
from r1train.train.forward import LmObjective, MicroBatch, forward_only
from r1train.train.setup import Trainer
from r1train.train.step import reduce_logs

FILE_NAME = "perplexity.json"


@dataclass(frozen=True, kw_only=True)
class CorpusPerplexity:
    """loss: mean of -ln p(token) over `tokens` held-out tokens of one corpus; perplexity: exp(loss)."""

    loss: float
    perplexity: float
    tokens: int


def heldout_perplexity(trainer: Trainer, tokenizer: Tokenizer) -> float | None:
    """Mean held-out loss, corpora weighted as in training; every corpus in <run>/eval/perplexity.json. Collective.

    None, and no file, where data.heldout_fraction left nothing out. Uses the stage's seq_length and micro_batch_size.
    """
    cfg = trainer.cfg
    corpora: dict[str, CorpusPerplexity] = {}
    for corpus in cfg.data.corpora:
        if corpus.weight > 0:
            windows = heldout_windows(
                Path(cfg.data.dir) / "corpus",
                corpus.name,
                seq_length=cfg.stage.seq_length,
                max_tokens=cfg.eval.perplexity_tokens,
                pad_id=tokenizer.pad_id,
            )
            if windows is not None:
                corpora[corpus.name] = measure(trainer, windows, micro_batch_size=cfg.stage.micro_batch_size)
    if not corpora:
        return None
    loss = weighted_loss(corpora, {corpus.name: corpus.weight for corpus in cfg.data.corpora})
    if torch.distributed.get_rank() == 0:
        write_perplexity(cfg, corpora, loss)
    return loss


def measure(trainer: Trainer, windows: Windows, *, micro_batch_size: int) -> CorpusPerplexity:
    """Loss of the main head over all data-parallel ranks' windows. Collective."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    padded = windows.padded(size * micro_batch_size)
    device = trainer.device.torch_device
    batches = [
        MicroBatch(batch.tokens, batch.labels, batch.positions, mask, None, {}).to(device)
        for batch, mask in zip(
            dense_micro_batches(padded.tokens[rank::size], micro_batch_size),
            padded.mask[rank::size].split(micro_batch_size),
            strict=True,
        )
    ]
    trainer.module.eval()
    objective = LmObjective()
    losses = forward_only(trainer.model, batches, objective)
    # Other pipeline stages than the last have no losses; reduce_logs tells them the result.
    sums = [objective.loss(loss, batch) for loss, batch in zip(losses, batches, strict=bool(losses))]
    logs, count = reduce_logs(sums, device)
    return CorpusPerplexity(loss=logs["loss"], perplexity=math.exp(logs["loss"]), tokens=count)


def weighted_loss(corpora: dict[str, CorpusPerplexity], weights: dict[str, float]) -> float:
    """Mean of the corpora's losses by their share in training: what the training loss is compared with."""
    total = math.fsum(weights[name] for name in corpora)
    return math.fsum(weights[name] * corpus.loss for name, corpus in corpora.items()) / total


def write_perplexity(cfg: RunConfig, corpora: dict[str, CorpusPerplexity], loss: float) -> None:
    """<run>/eval/perplexity.json, atomically."""
    folder = cfg.run_dir / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    body = {"loss": loss, "perplexity": math.exp(loss), "corpora": {n: asdict(c) for n, c in corpora.items()}}
    temporary = folder / (FILE_NAME + ".tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / FILE_NAME)
