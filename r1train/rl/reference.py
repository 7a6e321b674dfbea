"""The reference policy of the KL term: a second copy of the weights, replaced by the policy every so many steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from r1train.model.build import build_model
from r1train.model.gpt import R1Model
from r1train.train.setup import Trainer


class Reference:
    """A copy of the policy's weights and routing biases that never trains.

    offload: its parameters lie in host memory, pinned on CUDA, and are on the device only inside on_device().
    """

    def __init__(self, trainer: Trainer, *, offload: bool):
        self.model = build_model(trainer.cfg, trainer.device)
        self.model.requires_grad_(False)
        self._device = trainer.device
        self._host: dict[torch.nn.Parameter, torch.Tensor] = {}
        if offload:
            self._host = {one: self._to_host(one.data) for one in self.model.parameters()}
            self._sleep()
        self.refresh(trainer)

    @torch.no_grad()
    def refresh(self, trainer: Trainer) -> None:
        """Make it equal to the current policy (R1 section 2.1: every 400 steps). Collective."""
        # After an update the other ranks' shards are still the old ones until a forward asks for them.
        trainer.gather_weights()
        self.model.load_state_dict(trainer.module.state_dict())

    @contextmanager
    def on_device(self) -> Iterator[R1Model]:
        """The model, ready for forwards. Afterwards it sleeps again; nothing has changed, so nothing is copied back."""
        for parameter, host in self._host.items():
            there = torch.empty_like(host, device=self._device.torch_device)
            parameter.data = there.copy_(host, non_blocking=True)
        yield self.model
        self._sleep()

    def _sleep(self) -> None:
        for parameter, host in self._host.items():
            parameter.data = host

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(values, device="cpu", pin_memory=self._device.type == "cuda").copy_(values)
