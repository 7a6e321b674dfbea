"""The reference policy refreshed right after an update whose weights are gathered only by the next forward."""

from pathlib import Path

import torch
from tiny import config, windows

from r1train.dist.init import Device
from r1train.rl.reference import Reference
from r1train.train.batches import dense_micro_batches
from r1train.train.forward import LmObjective
from r1train.train.setup import build_trainer
from r1train.train.step import train_step

LAYOUTS = ("dp2_overlap",)


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same, of those that both hold."""
    assert left.keys() == right.keys()
    return [name for name, value in left.items() if isinstance(value, torch.Tensor) and not value.equal(right[name])]


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    trainer = build_trainer(config(layout), device, total_steps=10)
    reference = Reference(trainer, offload=False)
    before = {name: value.clone() for name, value in reference.model.named_parameters()}
    rank = torch.distributed.get_rank()
    train_step(trainer, dense_micro_batches(windows(4, seq_length=32, seed=rank), 2), LmObjective())
    behind = differing(before, dict(reference.model.named_parameters()))
    reference.refresh(trainer)
    found = dict(reference.model.named_parameters())
    trainer.gather_weights()
    policy = dict(trainer.module.named_parameters())
    return {
        "moved_by_itself": behind,
        "moved": len(differing(before, found)),
        "parameters": len(found),
        "not_the_policy": differing(found, policy),
        "weights": {name: value.detach().clone() for name, value in found.items()},
    }
