"""Prompts through the model in pieces, so that the attention scores of many or long prompts fit into memory.

A piece is some positions of some prompts; it reads what the pieces before it have left in the cache.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from r1train.data.tokenizer import Tokenizer
from r1train.model.decode import next_token_logits
from r1train.model.decode_experts import FeedForward
from r1train.model.token_cache import TokenCache
from r1train.rollout.live import in_blocks
from r1train.rollout.steps import Decoder

# Bytes of one forward's float32 scores in one layer. With their softmax and 16-bit copies up to three times as much is
# alive at a time, little beside weights and cache. On 16 heads one prompt of 4,096 tokens: enough to keep a GPU busy.
SCORE_BYTES = 1 << 30


@dataclass(frozen=True)
class Piece:
    """Positions [start, stop) of rows [first, last)."""

    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True)
class Prefill:
    """Different prompts, the longest first (row r is prompt_ids[r]), and the forwards that compute them."""

    prompt_ids: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]

    @staticmethod
    def of(prompt_ids: Iterable[tuple[int, ...]], *, heads: int) -> "Prefill":
        """heads: query heads of this rank. Prompts of one length keep their order; the same prompt is computed once."""
        rows = tuple(sorted(dict.fromkeys(prompt_ids), key=len, reverse=True))
        return Prefill(rows, tuple(_pieces([len(ids) for ids in rows], heads * torch.float32.itemsize)))

    def run(
        self, decoder: Decoder, tokenizer: Tokenizer, *, feed_forward: Callable[[int], FeedForward], forwards: int
    ) -> tuple[TokenCache, torch.Tensor | None]:
        """Cache of every prompt, and the next token's logits [rows, vocabulary] on the last stage.

        feed_forward: how a forward of so many tokens computes its experts. forwards: those of the rank that has most
        (collective over all ranks that share experts); beyond its own, this rank computes one throw-away token.
        """
        lengths = [len(ids) for ids in self.prompt_ids]
        padded = [[*ids, *[tokenizer.pad_id] * (lengths[0] - len(ids))] for ids in self.prompt_ids]
        tokens = torch.tensor(padded, device=decoder.device)
        decoder.cover(lengths[0])
        cache = decoder.empty_cache(len(lengths), in_blocks(lengths[0] + 1))
        last = None
        for piece in self.pieces:
            hidden = _forward(decoder, tokens, cache, piece, feed_forward)
            if hidden is None:
                continue
            last = hidden.new_empty((len(lengths), hidden.shape[-1])) if last is None else last
            ended = [row for row in range(piece.first, piece.last) if piece.start < lengths[row] <= piece.stop]
            rows = torch.tensor(ended, dtype=torch.int64, device=decoder.device)
            ends = torch.tensor([lengths[row] for row in ended], dtype=torch.int64, device=decoder.device)
            last[rows] = hidden[ends - 1 - piece.start, rows - piece.first]
        nobody = decoder.empty_cache(1, in_blocks(1))
        bos = torch.full((1, 1), tokenizer.bos_id, device=decoder.device)
        for _ in range(forwards - len(self.pieces)):
            _forward(decoder, bos, nobody, Piece(0, 1, 0, 1), feed_forward)
        # Right padding of a short prompt lies in slots that its response overwrites before they are visible.
        cache = cache.with_lengths(torch.tensor(lengths, device=decoder.device))
        return cache, None if last is None else next_token_logits(decoder.model, last)


def _forward(
    decoder: Decoder, tokens: torch.Tensor, cache: TokenCache, piece: Piece, feed_forward: Callable[[int], FeedForward]
) -> torch.Tensor | None:
    """One piece of tokens [rows, longest] into the cache; hidden [s, b, h] on the last stage, None elsewhere."""
    part = tokens[piece.first : piece.last, piece.start : piece.stop]
    positions = torch.arange(piece.start, piece.stop, device=decoder.device).expand(len(part), -1)
    slots = decoder.slots(positions, visible=piece.stop)
    return decoder.forward(part, cache.between(piece.first, piece.last), slots, feed_forward(part.numel()))


def _pieces(lengths: list[int], score: int) -> Iterable[Piece]:
    """As many whole prompts as the bound allows at a time, or of a longer prompt as many positions.

    lengths: the longest first. score: bytes of the scores of one token for one slot. One token is computed in any case.
    """
    scores = SCORE_BYTES // score
    first = 0
    while first < len(lengths):
        longest = lengths[first]
        last = min(first + max(scores // longest**2, 1), len(lengths))
        start = 0
        while start < longest:
            stop = min(start + _positions(start, scores // (last - first)), longest)
            yield Piece(first, last, start, stop)
            start = stop
        first = last


def _positions(start: int, scores: int) -> int:
    """The most positions s with s * (start + s) <= scores, but at least 1: each sees the s slots and those before."""
    root = (start * start + 4 * scores) ** 0.5
    return max(int((root - start) / 2), 1)
