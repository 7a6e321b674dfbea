"""Shapes that tests share: every variant of the DeepSeek family, and dense ones."""

from dataclasses import replace

from tiny import MODEL, Config, config

from r1train.config.schema_model import DenseModelConfig, Llama3RopeConfig, YarnConfig

_V2 = replace(MODEL, num_expert_groups=1, num_groups_per_token=1, num_experts_per_token=3, mtp_depth=0)
# As DeepSeek-V2-Lite: softmax before top-k, not normalised, two shared experts, plain queries, mscale_all_dim 0.707.
V2_LITE = replace(
    _V2,
    q_lora_rank=None,
    num_shared_experts=2,
    router_score="softmax",
    router_bias=False,
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    yarn=YarnConfig(factor=40.0, original_max_positions=64, mscale=0.707, mscale_all_dim=0.707),
)
# As Moonlight: sigmoid and bias without groups, plain queries, no YaRN.
MOONLIGHT = replace(_V2, q_lora_rank=None, num_shared_experts=2, routed_scaling_factor=2.446, rope_base=50000.0)
# As DeepSeek-V3 from the 32K phase on: three dense layers, YaRN with mscale_all_dim 1.
V3 = replace(MODEL, num_layers=5, num_dense_layers=3, yarn=YarnConfig(factor=40.0, original_max_positions=64))
DEEPSEEK = {
    "v2_lite": V2_LITE,
    "moonlight": MOONLIGHT,
    "v3": V3,
    "no_bias": replace(MODEL, router_bias=False),
    "softmax_normalised": replace(V2_LITE, norm_topk_prob=True, yarn=None),
}

LLAMA = DenseModelConfig(
    name="llama",
    vocab_size=64,
    hidden_size=48,
    num_layers=3,
    ffn_hidden_size=80,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    qkv_bias=False,
    tie_embeddings=False,
    rope_base=500.0,
    rope_scaling=Llama3RopeConfig(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64),
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    init_std=0.1,
)
QWEN = replace(LLAMA, name="qwen", qkv_bias=True, tie_embeddings=True, rope_scaling=None, num_key_value_heads=3)
DENSE = {"llama": LLAMA, "qwen": QWEN}
# Widths that two tensor-parallel ranks can cut; Llama's scaled rotation, Qwen2's biases and tied head in one.
EVERYTHING_DENSE = replace(QWEN, num_key_value_heads=2, rope_scaling=LLAMA.rope_scaling)


def dense_config(layout: str) -> Config:
    cfg = config(layout, model=EVERYTHING_DENSE)
    return replace(cfg, parallel=replace(cfg.parallel, pp_layout="Ett|tL")) if cfg.parallel.pp > 1 else cfg
