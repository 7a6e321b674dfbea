"""Windows of a corpus's held-out documents, cut once from beginning to end, for measuring perplexity."""

from dataclasses import dataclass
from pathlib import Path

import torch

from r1train.config.prepared import HELDOUT_SUFFIX
from r1train.data.corpus_check import check_heldout, has_heldout
from r1train.data.ring import TokenRing
from r1train.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Windows:
    """tokens: int64 [n, S + 1], neighbours share one token; mask: float32 [n, S], 1 where tokens[:, 1:] counts."""

    tokens: torch.Tensor
    mask: torch.Tensor

    def padded(self, multiple: int) -> "Windows":
        """With windows that count nothing, up to the next multiple of this number."""
        missing = -len(self.tokens) % multiple
        # A real window's tokens: padding must not look unlike text to the router.
        tokens = torch.cat([self.tokens, self.tokens[:1].expand(missing, -1)])
        return Windows(tokens, torch.cat([self.mask, self.mask.new_zeros(missing, self.mask.shape[1])]))


def heldout_windows(
    folder: Path, name: str, tokenizer: Tokenizer, *, seq_length: int, max_tokens: int
) -> Windows | None:
    """The first documents of <folder>/<name>_heldout as windows, max_tokens predicted tokens at most.

    Every token but the first is predicted once, from up to seq_length tokens before it; documents follow each other as
    in training. None where no document of this corpus was held out. Raises DataError as check_heldout does.
    """
    if not has_heldout(folder / name):
        return None
    check_heldout(folder / name, tokenizer)
    ring = TokenRing(folder / (name + HELDOUT_SUFFIX))
    count = min(ring.num_tokens - 1, max_tokens)
    stream = torch.from_numpy(ring.read(0, count + 1))
    tokens = torch.full((-(-count // seq_length), seq_length + 1), tokenizer.pad_id, dtype=torch.int64)
    mask = torch.zeros(len(tokens), seq_length)
    for row in range(len(tokens)):
        part = stream[row * seq_length : (row + 1) * seq_length + 1]
        tokens[row, : len(part)] = part
        mask[row, : len(part) - 1] = 1.0
    return Windows(tokens, mask)
