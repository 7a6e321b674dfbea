"""The native engine gives the same samples in every layout and batching, with the training forward's logprobs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from assembly import load_ranks

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2", "pp2_ep2", "tp2_ep2", "tp2_pp2")
# "first_rank_all" leaves the second data-parallel rank without prompts; "in_pieces" cuts prompts into several forwards.
SPREADS = ("first_rank_all", "every_other", "in_pieces")
PROMPTS = ("p0", "p1", "p2", "p3", "p4")


def samples(results: Path, layout: str, spread: str, batch_size: int) -> list:
    generated = load_ranks(results, "engine", layout)[0]["generated"][spread, batch_size]
    assert sorted(generated) == list(PROMPTS)
    assert [[sample.index for sample in generated[prompt]] for prompt in PROMPTS] == [[0, 1, 2, 3]] * 5
    return [sample for prompt in PROMPTS for sample in generated[prompt]]


@pytest.mark.parametrize("batch_size", (32, 3))
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_samples_everywhere(results: Path, layout: str, spread: str, batch_size: int):
    reference = samples(results, "single", "every_other", 32)
    found = samples(results, layout, spread, batch_size)
    assert [s.tokens.tolist() for s in found] == [s.tokens.tolist() for s in reference]
    assert [s.finish for s in found] == [s.finish for s in reference]
    for sample, expected in zip(found, reference, strict=True):
        np.testing.assert_allclose(sample.logprobs, expected.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_the_training_forward(results: Path, layout: str):
    ranks = load_ranks(results, "engine", layout)
    generated = ranks[0]["generated"]["every_other", 32]
    forwards = [rank["forward"] for rank in ranks if rank["forward"]]
    assert len(forwards) == (len(ranks) // 2 if "pp2" in layout else len(ranks))  # the last pipeline stage has them
    for forward in forwards:
        assert len(forward) == 20
        for (prompt, index), logprobs in forward.items():
            engine = torch.from_numpy(generated[prompt][index].logprobs)
            torch.testing.assert_close(engine, logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", (32, 3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_stage_knows_the_experts_of_its_own_layers(results: Path, layout: str, batch_size: int):
    whole = load_ranks(results, "engine", "single")[0]["routes"]["every_other", 32]
    seen = set()
    for rank in load_ranks(results, "engine", layout):
        mine = slice(rank["pp_rank"], rank["pp_rank"] + 1) if "pp2" in layout else slice(0, 2)
        for sample, routes in rank["routes"]["every_other", batch_size].items():
            assert sorted_experts(routes) == sorted_experts(whole[sample][:, mine])
            seen.add((rank["pp_rank"], sample))
    assert len(seen) == (40 if "pp2" in layout else 20)


def sorted_experts(routes: np.ndarray) -> list:
    return np.sort(routes, axis=-1).tolist()


def test_samples_end_at_eos_or_at_the_budget(results: Path):
    found = samples(results, "single", "every_other", 32)
    for sample in found:
        assert 1 not in sample.tokens[:-1]
        assert sample.finish == ("eos" if sample.tokens[-1] == 1 else "length")
        assert len(sample.tokens) == 16 or sample.finish == "eos"
        assert len(sample.text.split()) == len(sample.tokens) - (sample.finish == "eos")
    assert {sample.finish for sample in found} == {"eos", "length"}
    assert {sample.policy_version for sample in found} == {9}
    assert len({tuple(sample.tokens) for sample in found}) == 20  # no two samples share their random numbers
