"""The MTP loss on two context-parallel ranks is that of the whole rows, also where their targets are uneven."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "worker" / "mtp_parts.py"
CASES = ("uneven", "none_on_one_rank", "packed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, warm: Callable[..., str]) -> list[dict]:
    out = tmp_path_factory.mktemp("mtp_parts")
    warm(WORKER, 2, out)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def gathered(ranks: list[dict], case: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the whole hidden states, from both parts, and the head's, summed as data parallelism does."""
    hidden = torch.zeros_like(ranks[0][case]["whole"][0])
    for rank in ranks:
        hidden[rank[case]["places"]] = rank[case][kind][0]
    return hidden, sum(rank[case][kind][1] for rank in ranks)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_whole_rows(ranks: list[dict], case: str):
    expected = ranks[0][case]["whole"][:2]
    found = gathered(ranks, case, "ours")
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    for ours, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_logged_sums_are_those_of_whole_rows(ranks: list[dict], case: str):
    """Sum of the losses and number of targets; rolled by one token, a target at a sample's beginning is lost."""
    loss, targets = ranks[0][case]["whole"][2:]
    assert targets == {"uneven": 4 + 13, "none_on_one_rank": 8, "packed": 5 + 0}[case]
    assert sum(rank[case]["ours"][3] for rank in ranks) == targets
    assert sum(rank[case]["ours"][2] for rank in ranks) == pytest.approx(float(loss), rel=1e-6)
    assert loss > 1


@pytest.mark.parametrize("case", CASES)
def test_megatron_cores_own_counts_are_wrong_here(ranks: list[dict], case: str):
    """What the mend is for: with the counts of a rank alone the same gradients are off by more than 5 %."""
    hidden, expected = gathered(ranks, case, "theirs")[0], ranks[0][case]["whole"][0]
    assert (hidden - expected).norm() > 0.05 * expected.norm()
