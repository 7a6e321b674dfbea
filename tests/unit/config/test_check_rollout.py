"""Every rule of config/check_rollout.py reports a config that breaks it, and lets a good one pass."""

import pytest

from r1train.config import check_rollout

GRPO = ("stage=grpo", "stage.init_from=somewhere")
CUDA = ("cluster=one_gpu", "parallel=single", "optim=adamw_bf16")
DENSE = ("model=smollm2_135m",)
V3 = ("model=bench_v3_slice",)
FP8 = ("rollout.engine=vllm", "rollout.fp8=true", "rollout.cuda_graphs=false")
KEY = "rollout.asynchrony"
ONE_OFF = (f"{KEY}.mode=one-step-off",)
PARTIAL = (f"{KEY}.mode=partial", f"{KEY}.new_tokens=10", f"{KEY}.in_flight=1.5")
MIXED = ("rl.sampling={keep: mixed, oversample: 1.5, max_tries: 4}",)
CASES = [
    ("vllm_can_serve", [*GRPO, "rollout.engine=vllm"], "rollout.engine", "vLLM needs a GPU"),
    (
        "vllm_can_serve",
        [*GRPO, *CUDA, "rollout.engine=vllm", "optim.precision=fp8_blockwise"],
        "rollout.engine",
        "the trainer computes in FP8",
    ),
    ("vllm_can_serve", [*GRPO, *CUDA, "rollout.engine=vllm", "rollout.top_p=0.9"], "rollout.top_p", "after top-p"),
    (
        "vllm_can_serve",
        [*GRPO, *CUDA, "rollout.engine=vllm", "rollout.gpu_memory_share=1.5"],
        "rollout.gpu_memory_share",
        "not a share",
    ),
    ("fp8_engine_fits", [*GRPO, *CUDA, *V3, "rollout.fp8=true"], "rollout.fp8", "the native engine computes"),
    ("fp8_engine_fits", [*GRPO, *CUDA, *V3, *FP8, "rollout.cuda_graphs=true"], "rollout.fp8", "CUDA graphs"),
    ("fp8_engine_fits", [*GRPO, *CUDA, *V3, *FP8, "optim.precision=fp32"], "rollout.fp8", "BF16 activations"),
    (
        "fp8_engine_fits",
        [*GRPO, *CUDA, *V3, *FP8, "model.moe_ffn_hidden_size=192"],
        "rollout.fp8",
        "does not divide moe_ffn_hidden_size = 192",
    ),
    (
        "fp8_engine_fits",
        [*GRPO, *CUDA, *DENSE, *FP8],
        "rollout.fp8",
        "does not divide hidden_size = 576",
    ),
    ("asynchrony_fits", [*GRPO, *ONE_OFF, f"{KEY}.new_tokens=10"], f"{KEY}.new_tokens", "does not read it"),
    ("asynchrony_fits", [*GRPO, f"{KEY}.in_flight=1.5"], f"{KEY}.in_flight", "does not read it"),
    ("asynchrony_fits", [*GRPO, f"{KEY}.mode=partial"], f"{KEY}.new_tokens", "rollout.max_response_tokens = 40"),
    ("asynchrony_fits", [*GRPO, *PARTIAL, f"{KEY}.new_tokens=12"], f"{KEY}.new_tokens", "divides"),
    ("asynchrony_fits", [*GRPO, *PARTIAL, f"{KEY}.new_tokens=40"], f"{KEY}.new_tokens", "divides"),
    ("asynchrony_fits", [*GRPO, *PARTIAL, f"{KEY}.in_flight=1.0"], f"{KEY}.in_flight", "wait for its last sample"),
    ("asynchrony_fits", [*GRPO, *PARTIAL, *MIXED], "rl.sampling.keep", "none is left out"),
    ("routing_can_be_replayed", [*GRPO, *DENSE, "rl.routing_replay=old"], "rl.routing_replay", "no experts"),
    (
        "routing_can_be_replayed",
        [*GRPO, "rl.routing_replay=engine", "rl.record_routing=false"],
        "rl.routing_replay",
        "not recorded",
    ),
    (
        "routing_can_be_replayed",
        [*GRPO, *CUDA, "rl.routing_replay=engine", "parallel.overlap_expert_all_to_all=true"],
        "rl.routing_replay",
        "two micro-batches at once",
    ),
    ("routing_can_be_replayed", [*GRPO, "rl.replay_reference=true"], "rl.replay_reference", "nothing to replay"),
    (
        "routing_can_be_replayed",
        [*GRPO, "rl.routing_replay=engine", "rl.replay_reference=true", "rl.kl_coef=0.0"],
        "rl.replay_reference",
        "no reference policy",
    ),
    (
        "routing_can_be_replayed",
        [*GRPO, "rl.record_routing=false", "rl.stop_if.flipped_experts_share_above=0.1"],
        "rl.stop_if.flipped_experts_share_above",
        "flips are not known",
    ),
]
GOOD = [
    [*GRPO, *CUDA, *V3, *FP8],
    [*GRPO, *CUDA, *V3, *FP8, "optim.precision=fp8_blockwise"],
    [*GRPO, *CUDA, "rollout.engine=vllm", "rollout.cuda_graphs=false"],
    [*GRPO, *CUDA, "rollout.cuda_graphs=true"],
    [*GRPO, "rl.routing_replay=engine", "rl.replay_reference=true", "rl.stop_if.flipped_experts_share_above=0.2"],
    [*GRPO, "rl.routing_replay=old", "rl.record_routing=false"],
    [*GRPO, *ONE_OFF, *MIXED],
    [*GRPO, *PARTIAL, "rl.correction={weight: tis, weight_high: 2.0}"],
    [*GRPO, *DENSE, "parallel=single", "cluster.processes_per_node=1"],
]


@pytest.mark.parametrize(("overrides", "key", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rule_reports(problems, overrides, key, message):
    found = problems(*overrides)
    assert message in found[key].what
    assert found[key].fix


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in check_rollout.RULES} == {case[0] for case in CASES}


@pytest.mark.parametrize("overrides", GOOD)
def test_good_combinations_pass(problems, overrides):
    assert problems(*overrides) == {}
