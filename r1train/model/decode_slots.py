"""Where new tokens stand in the cache: their slots, their rotation, and what each of them must not see."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Slots:
    """Where the new tokens stand. positions: int64 [b, s], their cache slots; angles [s, b, 1, r], mscale: rotation;
    hidden: bool [b, 1, s, t], the slots that a token must not see; t covers all that any token sees.
    """

    positions: torch.Tensor
    angles: torch.Tensor
    mscale: float
    hidden: torch.Tensor

    @staticmethod
    def at(positions: torch.Tensor, rotary: tuple[torch.Tensor, float], *, visible: int) -> "Slots":
        """positions: int64 [b, s], all below `visible`, which the caller knows without asking the device.

        rotary: angles of all slots and the factor on cos and sin.
        """
        angles = rotary[0][positions].transpose(0, 1)[:, :, None]
        slots = torch.arange(visible, device=positions.device)
        return Slots(positions, angles, rotary[1], slots > positions[:, None, :, None])

    def within(self, window: int | None) -> "Slots":
        """The same for a layer in which a token sees `window` tokens, itself included; None: all before it."""
        if window is None:
            return self
        slots = torch.arange(self.hidden.shape[-1], device=self.positions.device)
        return replace(self, hidden=self.hidden | (slots <= self.positions[:, None, :, None] - window))
