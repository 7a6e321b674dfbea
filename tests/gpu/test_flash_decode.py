"""Flash attention over the cache of a decode step against all scores in float32, also inside a CUDA graph."""

import pytest
import torch

from r1train.model.decode_attention import attend, flash_attend, scored_attend
from r1train.model.decode_slots import Slots

pytestmark = pytest.mark.gpu1

# Key-value heads, query heads of each, head width: SmolLM2-135M, Llama 3.1 8B, as many keys as queries, one key head
# for all, and widths that are no power of two.
HEADS = ((3, 3, 64), (8, 4, 128), (4, 1, 64), (1, 8, 128), (2, 3, 16), (2, 5, 96))
# Slots of the cache, visible ones, and what rows have filled.
LENGTHS = (
    (128, 128, [0, 1, 63, 64, 65, 127]),
    (640, 384, [0, 383, 200, 255, 256, 257]),
    (4096, 4096, [4095, 17, 2048, 1000]),  # few rows of a long cache: computed in parts
    (512, 384, list(range(100, 356))),  # as many rows as a rollout has
)


def case(heads: tuple[int, int, int], lengths: tuple[int, int, list[int]], dtype) -> tuple:
    """query [1, b, g, m, d], entries [b, capacity, g, 2, d] of one layer of a larger cache, positions [b, 1].

    Slots that are not filled hold large numbers, which would show.
    """
    (groups, each, width), (capacity, _, places) = heads, lengths
    generator = torch.Generator("cuda").manual_seed(5)
    rows = len(places)
    shape = (2, rows + 2, capacity, groups * 2 * width)
    cache = torch.randn(shape, generator=generator, device="cuda").to(dtype)
    positions = torch.tensor(places, device="cuda")[:, None]
    entries = cache[:, 1:-1][1].unflatten(-1, (groups, 2, width))
    entries[torch.arange(capacity, device="cuda") > positions] = 100.0
    query = torch.randn((1, rows, groups, each + 2, width), generator=generator, device="cuda").to(dtype)
    return query[..., :-2, :], entries, positions


def slots_at(positions: torch.Tensor, visible: int) -> Slots:
    return Slots.at(positions, torch.zeros(visible, 2, 2, device="cuda"), visible=visible)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("window", (None, 1, 100, 384))
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda case: f"{len(case[2])}x{case[0]}")
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_flash_is_all_scores_in_float32(heads, lengths, window, dtype):
    """As near as the 16-bit path in full, and both within 16-bit rounding."""
    query, entries, positions = case(heads, lengths, dtype)
    slots = slots_at(positions, lengths[1]).within(window)
    found = flash_attend(query, entries, slots)
    exact = scored_attend(query.float(), entries.float(), slots)
    assert found.shape == (1, len(positions), heads[0] * heads[1] * heads[2]) and found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=8e-3, rtol=1.6e-2)
    in_full = scored_attend(query, entries, slots).float()
    assert (found.float() - exact).abs().mean() <= 1.5 * (in_full - exact).abs().mean() + 1e-5


@pytest.mark.parametrize("window", (None, 7))
def test_in_a_graph_lengths_are_those_of_the_replay(window):
    """Captured at one set of lengths, replayed at others: bit for bit what is computed anew."""
    lengths = LENGTHS[1]
    query, entries, positions = case(HEADS[0], lengths, torch.bfloat16)

    def step() -> torch.Tensor:
        return attend(query, entries, slots_at(positions, lengths[1]).within(window))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for places in (lengths[2], [383, 5, 1, 0, 100, 300]):
        positions.copy_(torch.tensor(places, device="cuda")[:, None])
        graph.replay()
        assert torch.equal(out, step())
        assert torch.equal(out, flash_attend(query, entries, slots_at(positions, lengths[1]).within(window)))


def test_who_gets_flash_attention(monkeypatch):
    """One new token in 16 bits; several new tokens and float32 get their scores in full."""
    from r1train.model import decode_attention

    asked = []
    monkeypatch.setattr(decode_attention, "flash_attend", lambda query, *_: asked.append(query.shape) or query)
    query, entries, positions = case(HEADS[0], LENGTHS[0], torch.bfloat16)
    slots = slots_at(positions, 128)
    attend(query, entries, slots)
    assert len(asked) == 1
    attend(query.float(), entries.float(), slots)
    both = torch.cat([query, query])
    attend(both, entries, slots_at(positions.expand(-1, 2), 128))
    assert len(asked) == 1
