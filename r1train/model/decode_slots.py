"""Where new tokens stand in the cache: their slots, their rotation, and what each of them must not see.

All that every layer needs and that is the same for all is computed once per forward.
Legend: s new tokens per sequence, b sequences, r rotated width, t visible cache slots.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Slots:
    """Where the new tokens stand. positions: int64 [b, s], their cache slots; rows: int64 [b, 1], 0 to b - 1.

    cos, sin: [s * b, 1, 1, r] in the model's dtype, the first half of sin negated. visible: t, which covers all that
    any token sees. window: how many tokens a token sees, itself included; None: all before it.
    """

    positions: torch.Tensor
    rows: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    visible: int
    window: int | None = None
    _made: dict[object, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def at(positions: torch.Tensor, rotation: torch.Tensor, *, visible: int) -> "Slots":
        """positions: int64 [b, s], all below `visible`, which the caller knows without asking the device.

        rotation: cos and sin of all slots, [slots, 2, r] (model/decode.py, `rotation_table`).
        """
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        cos, sin = rotation[positions.t().flatten()][:, :, None, None].unbind(dim=1)
        return Slots(positions, rows, cos, sin, visible)

    def within(self, window: int | None) -> "Slots":
        """The same for a layer in which a token sees `window` tokens, itself included; None: all before it."""
        return self if window == self.window else replace(self, window=window)

    def unseen(self) -> torch.Tensor:
        """float32 [b, 1, s, t], to be added to scores: -inf at the slots that a token must not see, else 0."""

        def make() -> tuple[torch.Tensor]:
            slots, own = torch.arange(self.visible, device=self.positions.device), self.positions[:, None, :, None]
            outside = slots > own
            if self.window is not None:
                outside = outside | (slots <= own - self.window)
            return (torch.zeros(outside.shape, device=outside.device).masked_fill_(outside, float("-inf")),)

        return self._once(("unseen", self.window), make)[0]

    def bounds(self, capacity: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For one token per sequence over a cache of so many slots, as flash attention wants it, int32.

        Where sequences begin and end among the queries [b + 1] and among all cache slots [b + 1], and the slots that
        each sequence has filled, the new token's included [b].
        """

        def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            places = torch.arange(len(self.positions) + 1, dtype=torch.int32, device=self.positions.device)
            return places, places * capacity, (self.positions[:, 0] + 1).int()

        return self._once(("bounds", capacity), make)

    def _once[Made: tuple[torch.Tensor, ...]](self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` gives, made by the first layer of the forward that asks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
