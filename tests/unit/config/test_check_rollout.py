"""Every rule of config/check_rollout.py reports a config that breaks it, and lets a good one pass."""

from dataclasses import replace

import pytest

from r1train.config import check_deepseek, check_rollout
from r1train.config.load import load_config
from r1train.config.schema_model import Llama3RopeConfig, ModelConfig
from r1train.convert.hf_export_config import model_to_hf
from r1train.errors import CheckpointError

GRPO = ("stage=grpo", "stage.init_from=somewhere")
CUDA = ("cluster=one_gpu", "parallel=single", "optim=adamw_bf16")
DENSE = ("model=smollm2_135m",)
V3 = ("model=bench_v3_slice",)
FP8 = ("rollout.engine=vllm", "rollout.fp8=true", "rollout.cuda_graphs=false")
NO_EXPERTS = ("model.num_dense_layers=${model.num_layers}", "model.mtp_depth=0")
VLLM = ("rollout.engine=vllm",)
EIGHT = (*VLLM, "cluster=eight_gpus", "parallel=dp8", "optim=adamw_bf16")
SIXES = ("parallel.world_size=12", "cluster.nodes=2", "cluster.processes_per_node=6")
STAGES = ("parallel.pp=2", "parallel.pp_layout=Ett|tmL")
REJECT = ("stage=reject", "stage.init_from=somewhere")
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
    (
        "vllm_can_serve",
        [*GRPO, *CUDA, "rollout.engine=vllm", "rollout.gpu_memory_share=1.5"],
        "rollout.gpu_memory_share",
        "not a share",
    ),
    (
        "vllm_has_the_class",
        [*GRPO, *CUDA, *VLLM, "model.attention_windows=[8, null, 8]"],
        "model.attention_windows",
        "have no windows",
    ),
    (
        "vllm_has_the_class",
        [*GRPO, *CUDA, *VLLM, "model.norm_topk_prob=false"],
        "model.router_score",
        "norm_topk_prob=False",
    ),
    (
        "vllm_has_the_class",
        [*GRPO, *CUDA, *VLLM, "model=qwen2_5_1_5b", "model.head_dim=64"],
        "model.qkv_bias",
        "free head_dim",
    ),
    (
        "vllm_settings_are_read",
        [*GRPO, "rollout.gpu_memory_share=7"],
        "rollout.gpu_memory_share",
        "the native engine does not read it",
    ),
    ("vllm_settings_are_read", [*GRPO, "rollout.push_mib=5"], "rollout.push_mib", "does not read it"),
    ("grpo_draws_from_all_tokens", [*GRPO, "rollout.top_p=0.9"], "rollout.top_p", "likeliest tokens alone"),
    (
        "grpo_draws_from_all_tokens",
        [*GRPO, *CUDA, *VLLM, "rollout.top_p=0.9"],
        "rollout.top_p",
        "likeliest tokens alone",
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
    ("vllm_settings_are_read", [*GRPO, "rollout.engine_tp=2"], "rollout.engine_tp", "does not read it"),
    ("engine_ranks_fit", [*GRPO, *EIGHT, "rollout.engine_tp=3"], "rollout.engine_tp", "8 data-parallel ranks"),
    # Two stages of four ranks: eight ranks are no part of one stage.
    ("engine_ranks_fit", [*GRPO, *EIGHT, *STAGES, "rollout.engine_tp=8"], "rollout.engine_tp", "4 data-parallel ranks"),
    (
        "engine_ranks_fit",
        [*GRPO, *EIGHT, *SIXES, "rollout.engine_tp=4"],
        "rollout.engine_tp",
        "nodes have 6 processes",
    ),
    ("engine_ranks_fit", [*GRPO, *EIGHT, "rollout.engine_tp=8"], "rollout.engine_tp", "num_attention_heads = 4"),
    (
        "engine_ranks_fit",
        [*GRPO, *EIGHT, *DENSE, "rollout.engine_tp=2"],
        "rollout.engine_tp",
        "num_attention_heads = 9 over 2",
    ),
    (
        "engine_ranks_fit",
        [*GRPO, *EIGHT, "rollout.engine_tp=4", "model.ffn_hidden_size=98"],
        "rollout.engine_tp",
        "cannot cut ffn_hidden_size = 98 over 4",
    ),
    (
        "engine_ranks_fit",
        [*GRPO, *EIGHT, "rollout.engine_tp=4", "model.moe_ffn_hidden_size=50"],
        "rollout.engine_tp",
        "cannot cut moe_ffn_hidden_size = 50 over 4",
    ),
    (
        "engine_ranks_fit",
        [*GRPO, *EIGHT, *V3, *FP8, "rollout.engine_tp=8", "model.v_head_dim=20"],
        "rollout.engine_tp",
        "into FP8's blocks of 128",
    ),
    (
        "engine_ranks_fit",
        [*GRPO, *CUDA, *VLLM, "rollout.engine_whole_experts=true"],
        "rollout.engine_whole_experts",
        "has all experts whole",
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
    [*GRPO, *EIGHT, *V3, "rollout.engine_tp=8"],
    [*GRPO, *EIGHT, *V3, *FP8, "rollout.engine_tp=8", "rollout.engine_whole_experts=true"],
    [*GRPO, *EIGHT, *V3, "parallel.world_size=16", "cluster.nodes=2", "rollout.engine_tp=16"],
    [*GRPO, *EIGHT, "rollout.engine_tp=4"],
    # No layer is dense, or none has experts: their widths cut nothing.
    [*GRPO, *EIGHT, "rollout.engine_tp=4", "model.num_dense_layers=0", "model.ffn_hidden_size=98"],
    [*GRPO, *EIGHT, "rollout.engine_tp=4", *NO_EXPERTS, "model.moe_ffn_hidden_size=50"],
    [*GRPO, *CUDA, *V3, *FP8],
    [*GRPO, *CUDA, *V3, *FP8, "model.num_dense_layers=0", "model.ffn_hidden_size=192"],
    [*GRPO, *CUDA, *V3, *FP8, "optim.precision=fp8_blockwise"],
    [*GRPO, *CUDA, "rollout.engine=vllm", "rollout.cuda_graphs=false"],
    [*GRPO, *CUDA, "rollout.cuda_graphs=true"],
    [*GRPO, *CUDA, *VLLM, "rollout.push_mib=5", "rollout.gpu_memory_share=0.7"],
    [*REJECT, "rollout.top_p=0.9"],
    [*REJECT, *CUDA, *VLLM, "rollout.top_p=0.9"],
    [*GRPO, "model.attention_windows=[8, null, 8]"],
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


MODEL_CHANGES = [
    (),
    ("attention_windows", (8, None, 8)),
    ("attention_windows", (None, None, None)),
    ("router_bias", False),
    ("norm_topk_prob", False),
    ("router_score", "softmax"),
    ("mtp_depth", 1),
    ("mtp_depth", 0),
    ("num_expert_groups", 2),
    ("head_dim", 64),
    (
        "rope_scaling",
        Llama3RopeConfig(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64),
    ),
]


@pytest.mark.parametrize("model", ["tiny", "deepseek_v2_lite", "moonlight_16b", "qwen2_5_1_5b", "llama3_1_8b"])
def test_the_rule_refuses_what_the_export_refuses(model):
    """One change at a time of a field that the model has."""
    cfg = load_config(["experiment=tiny", *GRPO, *CUDA, *VLLM, f"model={model}"], check_files=False)
    refused = 0
    for change in MODEL_CHANGES:
        if change and change[0] not in vars(cfg.model):
            continue
        changed = replace(cfg.model, **dict([change] if change else []))
        try:
            model_to_hf(changed, dtype="bfloat16")
            expected = False
        except CheckpointError:
            expected = True
        # A group's score is a rule of every engine (config/check_deepseek.py).
        found = check_rollout.vllm_has_the_class(replace(cfg, model=changed))
        groups = check_deepseek.group_score_is_top_two(changed) if isinstance(changed, ModelConfig) else []
        assert bool(found or groups) == expected, change
        refused += expected
    # Llama's shape takes everything that a dense model can say.
    assert refused == {"tiny": 4, "deepseek_v2_lite": 3, "moonlight_16b": 5, "qwen2_5_1_5b": 2, "llama3_1_8b": 0}[model]


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in check_rollout.RULES} == {case[0] for case in CASES}


@pytest.mark.parametrize("overrides", GOOD)
def test_good_combinations_pass(problems, overrides):
    assert problems(*overrides) == {}
