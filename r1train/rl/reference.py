"""The reference policy of the KL term: a second copy of the weights, replaced by the policy every so many steps."""

import torch

from r1train.model.build import build_model
from r1train.model.gpt import R1Model
from r1train.train.setup import Trainer


def build_reference(trainer: Trainer) -> R1Model:
    """A copy of the trainer's current weights and routing biases; it never trains."""
    reference = build_model(trainer.cfg, trainer.device)
    reference.requires_grad_(False)
    refresh_reference(reference, trainer)
    return reference


@torch.no_grad()
def refresh_reference(reference: R1Model, trainer: Trainer) -> None:
    """Make the reference equal to the current policy (R1 section 2.1: every 400 steps)."""
    policy = trainer.module.state_dict()
    reference.load_state_dict(policy)
