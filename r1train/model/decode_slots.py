"""Where new tokens stand in the cache: their slots, their rotation, and what each of them must not see."""

from dataclasses import dataclass

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
        angles = rotary[0][positions].transpose(0, 1)[:, :, None]
        slots = torch.arange(visible, device=positions.device)
        return Slots(positions, angles, rotary[1], slots > positions[:, None, :, None])
