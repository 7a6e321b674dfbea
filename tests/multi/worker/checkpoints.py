"""Saving, resuming, loading into another layout, and refusing a checkpoint of another model."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import parallel_state
from shards import all_shards
from tiny import CHECKPOINT_STEP, MODEL, OPTIM, SOURCES, Config, config, windows

from r1train.dist.init import Device
from r1train.errors import CheckpointError
from r1train.log.checkpoints import checkpoints
from r1train.train.batches import dense_micro_batches
from r1train.train.checkpoint import load_weights, resume, save_checkpoint
from r1train.train.forward import LmObjective
from r1train.train.setup import Trainer, build_trainer
from r1train.train.step import train_step

LAYOUTS = tuple(SOURCES)
OTHER_SEED = 99


def train_to(trainer: Trainer, last_step: int, *, save_until: int = 0) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every step up to last_step."""
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    rows = []
    while trainer.state.step < last_step:
        data = windows(8, seq_length=32, seed=trainer.state.position)
        result = train_step(trainer, dense_micro_batches(data, 2)[dp_rank::dp_size], LmObjective())
        trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=8)
        rows.append((trainer.state.step, result.logs["loss"], result.grad_norm))
        if trainer.state.step <= save_until:
            save_checkpoint(trainer)
    return rows


def adam_steps(trainer: Trainer) -> set[float]:
    """The step counts in AdamW's state."""
    parts = trainer.optimizer.chained_optimizers
    return {float(state["step"]) for part in parts for state in part.optimizer.state.values()}


def refusal(cfg: Config, device: Device, folder: Path) -> str:
    """What load_weights says to a model with another dense layer, which only the first pipeline stage holds."""
    other = replace(cfg, model=replace(MODEL, ffn_hidden_size=128))
    try:
        load_weights(build_trainer(other, device, total_steps=10), folder)
    except CheckpointError as error:
        return str(error)
    return "accepted"


def run(layout: str, device: Device, out: Path) -> dict:
    cfg = config(layout, run_dir=out / f"run_{layout}", optim=replace(OPTIM, ema_decay=0.9))
    trainer = build_trainer(cfg, device, total_steps=10)
    first = train_to(trainer, 3, save_until=3)
    result: dict = {
        "weights": all_shards(trainer.modules),
        "kept": [folder.name for folder in checkpoints(cfg.run_dir)],
    }
    result["uninterrupted"] = first + train_to(trainer, 6)

    again = build_trainer(replace(cfg, seed=OTHER_SEED), device, total_steps=10)
    assert resume(again)
    result |= {"state": again.state, "adam_resumed": adam_steps(again), "resumed": train_to(again, 6)}
    result["adam_after"] = adam_steps(again)
    result["average"], result["average_resumed"] = (all_shards(one.average.chunks) for one in (trainer, again))
    folder = cfg.run_dir / "checkpoints" / CHECKPOINT_STEP
    result["refusal"] = refusal(cfg, device, folder)
    source = SOURCES[layout]
    if source is not None:
        result["loaded"], result["continued"] = _from_other_layout(cfg, device, out, source)
    return result


def _from_other_layout(cfg: Config, device: Device, out: Path, source: str) -> tuple[list, dict]:
    """Weights after load_weights; the steps after resuming and their average, from another layout's third step."""
    folder = out / f"run_{source}" / "checkpoints" / CHECKPOINT_STEP
    other = build_trainer(replace(cfg, seed=OTHER_SEED), device, total_steps=10)
    load_weights(other, folder)
    loaded = all_shards(other.modules)
    run_dir = cfg.run_dir.with_name(f"{cfg.run_dir.name}_from_{source}")
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder, run_dir / "checkpoints" / CHECKPOINT_STEP)
    torch.distributed.barrier()
    moved = build_trainer(replace(cfg, seed=OTHER_SEED, run_dir=run_dir), device, total_steps=10)
    assert resume(moved)
    continued = train_to(moved, 6)
    return loaded, {"steps": continued, "average": all_shards(moved.average.chunks)}
