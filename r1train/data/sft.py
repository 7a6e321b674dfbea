"""Supervised fine-tuning data: prompt/response rows, packed anew each epoch; row p is a pure function of (seed, p)."""

from pathlib import Path

import numpy as np

from r1train.data.batch import PackedBatch, pack
from r1train.data.chat import chat_sample
from r1train.data.files import check_unique, read_rows
from r1train.data.order import epoch_order
from r1train.data.packing import best_fit
from r1train.data.tokenizer import Tokenizer


class SftSource:
    """Endless packed rows of seq_length tokens. State of training: the number of packed rows consumed."""

    def __init__(self, path: str | Path, tokenizer: Tokenizer, *, seq_length: int, seed: int):
        """path: jsonl with at least id, prompt, response.

        Raises DataError: file missing, empty or malformed, an id twice, examples longer than seq_length (named).
        """
        rows = read_rows(Path(path), {"id": str, "prompt": str, "response": str})
        check_unique([row["id"] for row in rows], Path(path))
        self.samples = [chat_sample(tokenizer, row["prompt"], row["response"], id=row["id"]) for row in rows]
        self.seq_length = seq_length
        self._pad_id = tokenizer.pad_id
        self._seed = seed
        self._epoch = -1
        self._bins: list[list[int]] = []
        self.rows_per_epoch = len(self._packing(0))

    def row(self, index: int) -> PackedBatch:
        """Packed row `index` (0, 1, ... without end)."""
        epoch, place = divmod(index, self.rows_per_epoch)
        chosen = self._packing(epoch)[place]
        return pack([self.samples[item] for item in chosen], seq_length=self.seq_length, pad_id=self._pad_id)

    def batch(self, consumed: int, count: int, *, dp_rank: int = 0, dp_size: int = 1) -> list[PackedBatch]:
        """This rank's contiguous part of rows [consumed, consumed + count): count / dp_size rows."""
        assert count % dp_size == 0, f"{count} rows over {dp_size} ranks"
        share = count // dp_size
        first = consumed + dp_rank * share
        return [self.row(index) for index in range(first, first + share)]

    def _packing(self, epoch: int) -> list[list[int]]:
        """Bins of sample indices. Shuffled before packing (who shares a row) and after it (order of the rows).

        The number of bins is the same in every epoch, because best_fit's depends on the lengths only.
        """
        if epoch != self._epoch:
            order = epoch_order(len(self.samples), seed=self._seed, epoch=epoch, stream="sft/samples")
            shuffled = [self.samples[index] for index in order]
            names = [sample.id for sample in shuffled]
            bins = best_fit([len(sample.tokens) for sample in shuffled], self.seq_length, names=names)
            rows = epoch_order(len(bins), seed=self._seed, epoch=epoch, stream="sft/rows")
            self._bins = [[int(order[item]) for item in bins[row]] for row in np.asarray(rows)]
            self._epoch = epoch
        return self._bins
