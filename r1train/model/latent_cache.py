"""What generation keeps per token and layer: normalised latent and rotated RoPE key, nothing per head (V2 s2.1.2)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LatentCache:
    """entries [layers of this stage, sequences, capacity, kv_lora_rank + qk_rope_head_dim]; lengths int64 [sequences].

    Slot t of a sequence holds its token t; slots from its length on hold nothing that is read.
    DeepSeek-V3 keeps 576 values per token and layer instead of 128 * (192 + 128) = 40,960.
    """

    entries: torch.Tensor
    lengths: torch.Tensor

    @staticmethod
    def empty(shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> "LatentCache":
        lengths = torch.zeros(shape[1], dtype=torch.int64, device=device)
        return LatentCache(torch.zeros(shape, dtype=dtype, device=device), lengths)

    def write(self, layer: int, positions: torch.Tensor, values: torch.Tensor) -> None:
        """Store values [sequences, s, width] at slots positions [sequences, s] (in place)."""
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self.entries[layer][rows, positions] = values

    def rows(self, chosen: torch.Tensor) -> "LatentCache":
        """The chosen sequences, int64 [n]; a sequence may be chosen several times (samples that share a prompt)."""
        return LatentCache(self.entries[:, chosen], self.lengths[chosen])

    def with_capacity(self, capacity: int) -> "LatentCache":
        """The same contents with room for `capacity` tokens."""
        layers, sequences, old, width = self.entries.shape
        entries = self.entries.new_zeros((layers, sequences, capacity, width))
        entries[:, :, :old] = self.entries
        return LatentCache(entries, self.lengths)

    def with_lengths(self, lengths: torch.Tensor) -> "LatentCache":
        return LatentCache(self.entries, lengths)
