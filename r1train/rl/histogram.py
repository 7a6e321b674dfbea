"""Quantiles of ratios over all ranks from a histogram of their logarithms: a small sum, no gathered tokens."""

import torch
from megatron.core import parallel_state
from torch import Tensor

# Bounds of |ln ratio|: 32 per decade, so a quantile of ln ratio is right to 4 %; below 1e-6 the ratio counts as 1.
PER_DECADE = 32
SMALLEST, LARGEST = 1e-6, 20.0
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


def _bounds() -> Tensor:
    decades = torch.tensor(LARGEST / SMALLEST, dtype=torch.float64).log10().item()
    steps = torch.arange(int(decades * PER_DECADE) + 2, dtype=torch.float64)
    side = SMALLEST * 10.0 ** (steps / PER_DECADE)
    return torch.cat([-side.flip(0), side])


BOUNDS = _bounds()


class RatioHistogram:
    """Counts of ln ratio, added up over micro-batches; the same however tokens are spread over batches and ranks."""

    def __init__(self, device: torch.device | str | int):
        self.counts = torch.zeros(len(BOUNDS) + 1, dtype=torch.float64, device=device)
        self._bounds = BOUNDS.to(device)

    def add(self, log_ratio: Tensor, keep: Tensor) -> None:
        """log_ratio: [T]; keep: bool [T], the tokens that count."""
        places = torch.bucketize(log_ratio.detach().double(), self._bounds)
        self.counts.index_add_(0, places, keep.double())

    def reduce(self) -> "RatioHistogram":
        """Sum over data-parallel ranks, known to every pipeline stage (only the last one adds). Collective."""
        tokens = parallel_state.get_data_parallel_group(with_context_parallel=True)
        for group in (tokens, parallel_state.get_pipeline_model_parallel_group()):
            torch.distributed.all_reduce(self.counts, group=group)
        return self

    def quantiles(self, name: str) -> dict[str, float]:
        """name/p01, name/p50, name/p99 and name/max of the ratio; 1.0 where nothing was counted."""
        counts = self.counts.cpu()
        reached, total = counts.cumsum(0), counts.sum().item()
        values = {key: self._ratio(int(torch.searchsorted(reached, share * total))) for key, share in QUANTILES.items()}
        filled = counts.nonzero()
        values["max"] = self._ratio(int(filled.max())) if len(filled) else 1.0
        return {f"{name}/{key}": value if total else 1.0 for key, value in values.items()}

    def _ratio(self, place: int) -> float:
        """exp of the middle of a bin; the bins at the ends stand for their bound, the one around 0 for ratio 1."""
        low, high = BOUNDS[max(place - 1, 0)].item(), BOUNDS[min(place, len(BOUNDS) - 1)].item()
        return 1.0 if low < 0.0 < high else torch.tensor((low + high) / 2).exp().item()
