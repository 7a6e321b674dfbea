"""What generation keeps per token and layer."""

from dataclasses import dataclass

import torch

from r1train.model.decode_slots import Slots


@dataclass(frozen=True)
class TokenCache:
    """entries [layers of this stage, sequences, capacity, width]; lengths int64 [sequences].

    Slot t of a sequence holds its token t; slots from its length on hold nothing that is read. MLA keeps the normalised
    latent and the rotated RoPE key, nothing per head (V2 report section 2.1.2): DeepSeek-V3 576 values instead of
    128 * (192 + 128) = 40,960. GQA keeps the rotated key and the value of each key-value head.
    routes [sequences, capacity, expert layers of this stage, experts per token], uint8 or int16: the experts that each
    token went to, where they are recorded, else None.
    """

    entries: torch.Tensor
    lengths: torch.Tensor
    routes: torch.Tensor | None = None

    @property
    def capacity(self) -> int:
        return self.entries.shape[2]

    @staticmethod
    def empty(shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> "TokenCache":
        lengths = torch.zeros(shape[1], dtype=torch.int64, device=device)
        return TokenCache(torch.zeros(shape, dtype=dtype, device=device), lengths)

    def write(self, layer: int, slots: Slots, values: torch.Tensor) -> None:
        """Store values [sequences, s, ...], whose last axes make up the width, at the new tokens' slots (in place)."""
        self.entries[layer].unflatten(-1, values.shape[2:])[slots.rows, slots.positions] = values

    def write_routes(self, layer: int, slots: Slots, experts: torch.Tensor) -> None:
        """Store experts [s * sequences, k] of expert layer `layer` at the new tokens' slots (in place)."""
        assert self.routes is not None
        sequences, count = slots.positions.shape
        of_sequence = experts.unflatten(0, (count, sequences)).transpose(0, 1)
        self.routes[:, :, layer][slots.rows, slots.positions] = of_sequence.to(self.routes.dtype)

    def rows(self, chosen: torch.Tensor) -> "TokenCache":
        """The chosen sequences, int64 [n]; a sequence may be chosen several times (samples that share a prompt)."""
        routes = None if self.routes is None else self.routes[chosen]
        return TokenCache(self.entries[:, chosen], self.lengths[chosen], routes)

    def between(self, start: int, stop: int) -> "TokenCache":
        """A view of sequences [start, stop)."""
        routes = None if self.routes is None else self.routes[start:stop]
        return TokenCache(self.entries[:, start:stop], self.lengths[start:stop], routes)

    def keep(self, chosen: torch.Tensor) -> "TokenCache":
        """The chosen sequences, int64 [n], moved to the front (in place); a view of them."""
        kept = self.between(0, len(chosen))
        kept.take_over(self.rows(chosen), torch.arange(len(chosen), device=chosen.device))
        return kept

    def take_over(self, other: "TokenCache", rows: torch.Tensor) -> None:
        """Sequences of another cache, which is no longer than this one, in place of these rows (in place)."""
        self.entries[:, rows, : other.capacity] = other.entries
        self.lengths[rows] = other.lengths
        if self.routes is not None and other.routes is not None:
            self.routes[rows, : other.capacity] = other.routes

    def with_capacity(self, capacity: int) -> "TokenCache":
        """The same contents with room for `capacity` tokens."""
        layers, sequences, old, width = self.entries.shape
        entries = self.entries.new_zeros((layers, sequences, capacity, width))
        entries[:, :, :old] = self.entries
        if self.routes is None:
            return TokenCache(entries, self.lengths)
        routes = self.routes.new_zeros((sequences, capacity, *self.routes.shape[2:]))
        routes[:, :old] = self.routes
        return TokenCache(entries, self.lengths, routes)

    @property
    def nbytes(self) -> int:
        return self.entries.nbytes + (0 if self.routes is None else self.routes.nbytes)

    def with_lengths(self, lengths: torch.Tensor) -> "TokenCache":
        return TokenCache(self.entries, lengths, self.routes)
