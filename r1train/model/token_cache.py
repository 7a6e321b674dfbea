"""What generation keeps per token and layer."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenCache:
    """entries [layers of this stage, sequences, capacity, width]; lengths int64 [sequences].

    Slot t of a sequence holds its token t; slots from its length on hold nothing that is read. MLA keeps the normalised
    latent and the rotated RoPE key, nothing per head (V2 report section 2.1.2): DeepSeek-V3 576 values instead of
    128 * (192 + 128) = 40,960. GQA keeps the rotated keys and the values of its key-value heads.
    """

    entries: torch.Tensor
    lengths: torch.Tensor

    @staticmethod
    def empty(shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> "TokenCache":
        lengths = torch.zeros(shape[1], dtype=torch.int64, device=device)
        return TokenCache(torch.zeros(shape, dtype=dtype, device=device), lengths)

    def write(self, layer: int, positions: torch.Tensor, values: torch.Tensor) -> None:
        """Store values [sequences, s, width] at slots positions [sequences, s] (in place)."""
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self.entries[layer][rows, positions] = values

    def rows(self, chosen: torch.Tensor) -> "TokenCache":
        """The chosen sequences, int64 [n]; a sequence may be chosen several times (samples that share a prompt)."""
        return TokenCache(self.entries[:, chosen], self.lengths[chosen])

    def with_capacity(self, capacity: int) -> "TokenCache":
        """The same contents with room for `capacity` tokens."""
        layers, sequences, old, width = self.entries.shape
        entries = self.entries.new_zeros((layers, sequences, capacity, width))
        entries[:, :, :old] = self.entries
        return TokenCache(entries, self.lengths)

    def with_lengths(self, lengths: torch.Tensor) -> "TokenCache":
        return TokenCache(self.entries, lengths)
