"""When the flex dispatcher is used: a round of tokens that comes back, and ranks that agree. DeepEP is a stand-in."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.moe import fused_a2a

from r1train.dist import probe

GROUP = SimpleNamespace(size=lambda: 4, rank=lambda: 3)


class Stand:
    """What megatron-core's fused_dispatch and fused_combine do with one expert per rank: nothing is summed."""

    def __init__(self, *, change: float = 0.0, error: Exception | None = None):
        self.change, self.error, self.sent = change, error, None

    def dispatch(self, tokens, experts, weights, num_experts, group):
        self.sent = (tokens, experts, weights, num_experts, group)
        return tokens, experts, weights, None, "handle"

    def combine(self, tokens, group, handle):
        assert (group, handle) == (GROUP, "handle")
        if self.error is not None:
            raise self.error
        return tokens + self.change, None


def use(monkeypatch, stand):
    monkeypatch.setattr(fused_a2a, "fused_dispatch", stand.dispatch)
    monkeypatch.setattr(fused_a2a, "fused_combine", stand.combine)
    return stand


def test_a_round_that_comes_back(monkeypatch):
    stand = use(monkeypatch, Stand())
    assert probe.round_problem(GROUP, "cpu") is None
    tokens, experts, weights, num_experts, group = stand.sent
    assert (tokens.shape, tokens.dtype, num_experts, group) == ((64, 7168), torch.bfloat16, 4, GROUP)
    assert (experts.shape, experts.dtype, experts[:5, 0].tolist()) == ((64, 1), torch.int64, [3, 0, 1, 2, 3])
    assert (weights.shape, weights.dtype) == ((64, 1), torch.float32)
    assert [tokens[index, 0].item() for index in (0, 1, 63)] == [192.0, 193.0, 255.0]


@pytest.mark.parametrize(
    ("stand", "problem"),
    [
        (Stand(change=1.0), "a round of tokens came back changed"),
        (Stand(error=RuntimeError("NVSHMEM: no peer\nstack")), "a round of tokens failed: NVSHMEM: no peer"),
        (Stand(error=AssertionError()), "a round of tokens failed: AssertionError"),
    ],
)
def test_a_round_that_does_not(monkeypatch, stand, problem):
    use(monkeypatch, stand)
    assert probe.round_problem(GROUP, "cpu") == problem


def test_without_deep_ep_megatron_core_has_no_functions(monkeypatch):
    monkeypatch.setattr(fused_a2a, "fused_dispatch", None)
    assert probe.round_problem(GROUP, "cpu") == "a round of tokens failed: 'NoneType' object is not callable"


def test_one_rank_sends_nothing():
    assert probe.round_problem(SimpleNamespace(size=lambda: 1, rank=lambda: 0), "cpu") == "one rank holds all experts"


@pytest.fixture
def job(monkeypatch):
    """A job on GPUs of three ranks, this one the first; job(problems of the others) sets what they report."""
    others: list[list[str | None]] = []

    def gather(found, problem):
        found[:] = [problem, *others.pop(0)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(probe, "deep_ep_problem", lambda: None)
    monkeypatch.setattr("megatron.core.parallel_state.get_expert_tensor_and_model_parallel_group", lambda: GROUP)
    monkeypatch.setattr(probe, "round_problem", lambda group, device: None)
    probe._problem_of_the_job.cache_clear()
    yield lambda *rounds: others.extend(rounds)
    probe._problem_of_the_job.cache_clear()


def test_all_ranks_take_flex_or_none_does(job, monkeypatch):
    job([None, None], [None, None])
    assert [probe.usable_dispatcher("flex") for _ in range(2)] == ["flex", "flex"]  # asked once

    probe._problem_of_the_job.cache_clear()
    job([None, None], [None, "a round of tokens failed: timeout"])
    assert probe.usable_dispatcher("flex") == "alltoall"
    assert probe.flex_problem() == "rank 2: a round of tokens failed: timeout"

    probe._problem_of_the_job.cache_clear()
    monkeypatch.setattr(probe, "round_problem", lambda group, device: pytest.fail("would wait for rank 1 for ever"))
    job(["No module named 'deep_ep'", None])
    assert probe.flex_problem() == "rank 1: No module named 'deep_ep'"
    assert probe.usable_dispatcher("alltoall") == "alltoall"
