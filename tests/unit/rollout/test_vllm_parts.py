"""What of vLLM's engine needs no model: what ranks and experts have to agree on, how vLLM is imported, seeds."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from r1train.errors import EnvironmentProblem
from r1train.rollout.engine import SamplingParams
from r1train.rollout.engine_ranks import EnginesParted, check_agreed
from r1train.rollout.vllm_answers import RoutesMissing, check_routes
from r1train.rollout.vllm_options import import_vllm, request_seed

PARAMS = SamplingParams(samples_per_prompt=2, temperature=0.9, top_p=1.0, max_response_tokens=6, seed=1, name="push")


def test_ranks_that_drew_different_tokens_end_the_run():
    check_agreed(["a1", "a1"])
    with pytest.raises(EnginesParted, match="the 3 ranks of an engine drew different tokens"):
        check_agreed(["a1", "a1", "b2"])


def test_experts_that_nobody_recorded_stop_the_run():
    """Two layers, three experts a token: 0 everywhere is what a kernel leaves that does not record."""
    good = np.array([[[3, 1, 2], [0, 2, 1]]] * 4, dtype=np.int16)
    check_routes(good, 4)
    with pytest.raises(RoutesMissing, match="the same expert twice"):
        check_routes(np.zeros_like(good), 4)
    with pytest.raises(RoutesMissing, match="experts of 4 of 5 tokens"):
        check_routes(good, 5)


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EnvironmentProblem, match=r"r1train\[vllm\]"):
        import_vllm()


def test_vllm_is_told_of_the_allocator_and_of_fp8_when_it_is_imported(monkeypatch):
    names = ("PYTORCH_CUDA_ALLOC_CONF", "VLLM_USE_DEEP_GEMM", "VLLM_ENABLE_V1_MULTIPROCESSING")
    for name in (*names, "VLLM_ALLOW_INSECURE_SERIALIZATION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    import_vllm()
    assert [os.environ.get(name) for name in names] == ["expandable_segments:True", None, "0"]
    import_vllm(fp8=True)
    assert os.environ["VLLM_USE_DEEP_GEMM"] == "0"


def test_a_request_has_a_seed_of_its_own():
    seeds = {request_seed(PARAMS, prompt, index) for prompt in ("a", "b") for index in range(4)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(PARAMS, "a", 0) == request_seed(PARAMS, "a", 0)
