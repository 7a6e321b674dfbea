"""vLLM's engines over the ranks of a job: who asks what, stages hold the same samples, and all ranks end together."""

from pathlib import Path

import numpy as np
import pytest
from assembly import load_ranks
from tiny import prompts

LAYOUTS = ("ep2", "pp2", "pp2_ep2")
IDS = [prompt.id for prompt in prompts()]


@pytest.fixture(params=LAYOUTS)
def ranks(request: pytest.FixtureRequest, results: Path) -> list[dict]:
    return load_ranks(results, "vllm_ranks", request.param)


def engines(ranks: list[dict]) -> list[list[dict]]:
    """The ranks of each engine: the data-parallel ranks of a stage."""
    size = len({rank["dp_rank"] for rank in ranks})
    return [ranks[at : at + size] for at in range(0, len(ranks), size)]


def test_every_sample_is_drawn_by_one_engine(ranks: list[dict]):
    """Fifteen samples of five prompts over all engines, about as many each; the ranks of an engine ask the same."""
    for members in engines(ranks):
        assert all(member["asked"] == members[0]["asked"] for member in members)
    drawn = [tuple(ids) for members in engines(ranks) for ids in members[0]["asked"]]
    assert sorted(drawn) == sorted(prompt.token_ids for prompt in prompts() for _ in range(3))
    counts = [len(members[0]["asked"]) for members in engines(ranks)]
    assert max(counts) - min(counts) <= 1


def test_an_engine_has_one_random_stream_and_others_have_another(ranks: list[dict]):
    streams = [members[0]["drawn"][0] for members in engines(ranks)]
    assert len(set(streams)) == len(streams)
    for members in engines(ranks):
        assert all(member["drawn"] == members[0]["drawn"] for member in members)


def test_stages_hold_the_same_samples_with_their_own_layers_experts(ranks: list[dict]):
    for rank in ranks:
        wanted = {name + str(index) for name in rank["mine"] for index in range(3)}
        assert rank["samples"].keys() == wanted
        lengths = {prompt.id: len(prompt.token_ids) for prompt in prompts()}
        layers = rank_layers(ranks, rank)
        for name, sample in rank["samples"].items():
            # Token 5, one that the engine drew, <|eos|>: the last one is not computed.
            assert sample.tokens.tolist() == [5, sample.tokens[1], 1]
            assert sample.routes.shape == (lengths[name[:-1]] + 2, len(layers), 2)
            assert np.array_equal(sample.routes[0], [[layer, layer + 1] for layer in layers])
        other = next(one for one in ranks if one["dp_rank"] == rank["dp_rank"])
        for name, sample in rank["samples"].items():
            assert np.array_equal(sample.tokens, other["samples"][name].tokens)
            assert np.array_equal(sample.logprobs, other["samples"][name].logprobs)
    assert len({int(sample.tokens[1]) for rank in ranks for sample in rank["samples"].values()}) > 5


def rank_layers(ranks: list[dict], rank: dict) -> list[int]:
    """Expert layers of its stage, from 0: of three layers the first is dense; two stages have two layers and one."""
    if len({one["stage"] for one in ranks}) == 1:
        return [1, 2]
    return [[1], [2]][rank["stage"]]


def test_a_watcher_hears_of_its_own_samples_once(ranks: list[dict]):
    for rank in ranks:
        expected = [(place, name, index) for place, name in enumerate(rank["mine"]) for index in range(3)]
        assert sorted(rank["heard"]) == expected
    assert sorted({name for rank in ranks for name in rank["mine"]}) == IDS


def test_stages_go_on_telling_each_other_until_the_slowest_is_done(ranks: list[dict]):
    """Four exchanges of two steps and an empty one: 15 samples by twos take 8 steps, as do a last stage's 8 one by one.

    Of two stages the first has 7 samples by twos: it is done after 4 steps.
    """
    assert [rank["polls"] for rank in ranks] == [5] * len(ranks)


def test_nobody_hears_of_what_the_ranks_of_an_engine_drew_apart(ranks: list[dict]):
    """The last rank parts after the first exchange, of 2 x 2 samples, and 2 x 1 of a second stage."""
    parted = len(engines(ranks)[0]) > 1
    for rank in ranks:
        assert rank["parted"].startswith("EnginesParted: the 2 ranks of an engine") == parted
    replicas = [rank for rank in ranks if rank["stage"] == 0]
    heard = sum(rank["heard_before_it_showed"] for rank in replicas)
    assert heard == (15 if not parted else 4 if len(engines(ranks)) == 1 else 6)


def test_what_one_rank_finds_ends_all_of_them_asleep(ranks: list[dict]):
    """The last rank's experts are missing, then its cut of one layer is wrong."""
    for rank in ranks:
        assert rank["forgot"].startswith("RoutesMissing: vLLM gave the experts of")
        assert "PushFailed: after the push of policy 1" in rank["wrong"] and "2/float32" in rank["wrong"]
        assert rank["calls"][-1] == "sleep 1"


def test_ranks_of_an_engine_hold_cuts(ranks: list[dict]):
    """64 x 48 of o_proj over two ranks, the norm on each; so the sums of the push were over both."""
    size = max(map(len, engines(ranks)))
    for rank in ranks:
        assert rank["rows"]["model.layers.0.self_attn.o_proj.weight"] == 64 * 48 // size
        assert rank["rows"]["model.layers.0.input_layernorm.weight"] == 64
