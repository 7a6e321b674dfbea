"""conf/model/bench_v3_slice.yaml is the shape of the plain megatron-core baseline of docs/performance.md."""

import dataclasses

import pytest
import torch

from r1train.config.load import load_config
from r1train.plan.compute import flops_per_token
from r1train.plan.shape import count_parameters

OVERRIDES = ["model=bench_v3_slice", "parallel=single", "cluster=one_gpu", "optim=adamw_bf16", "stage=pretrain"]
OVERRIDES += ["stage.steps=8", "stage.batch_size=4", "data.tokenizer_vocab_size=16384"]
# What the baseline gives MLATransformerConfig besides sizes; the rest it leaves at megatron-core's defaults.
BASELINE = {
    "moe_token_dispatcher_type": "alltoall",
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_topk_scaling_factor": 2.5,
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_aux_loss_coeff": 1e-4,
    "moe_router_dtype": "fp32",
    "moe_grouped_gemm": True,
    "moe_permute_fusion": True,
    "moe_router_fusion": True,
    "moe_router_pre_softmax": True,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "gated_linear_unit": True,
    "activation_func": torch.nn.functional.silu,
    "bias_activation_fusion": True,
    "bias_dropout_fusion": True,
    "attention_dropout": 0,
    "hidden_dropout": 0,
    "bf16": True,
    "params_dtype": torch.bfloat16,
    "pipeline_dtype": torch.bfloat16,
    "rope_type": "yarn",
    "rotary_scaling_factor": 1.0,
    "original_max_position_embeddings": 4096,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "apply_rope_fusion": True,
    "multi_latent_attention": True,
    "qk_layernorm": True,
    "mtp_num_layers": None,
    "cross_entropy_loss_fusion": True,
    "cross_entropy_fusion_impl": "te",
    "init_method_std": 0.006,
}
SIZES = {
    "num_layers": 5,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "ffn_hidden_size": 18432,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
    "num_moe_experts": 16,
    "moe_router_topk": 8,
    "moe_ffn_hidden_size": 2048,
    "moe_shared_expert_intermediate_size": 2048,
    "moe_layer_freq": [0, 1, 1, 1, 1],
}
# Weight gradients added by the GEMM, loss per token, V3's epsilon, weights drawn by name, bias rate by schedule.
OURS = {
    "gradient_accumulation_fusion": True,
    "calculate_per_token_loss": True,
    "layernorm_epsilon": 1e-6,
    "perform_initialization": False,
    "moe_router_bias_update_rate": 0.0,
}
DRAWN = ("init_method", "output_layer_init_method", "embedding_init_method")


def test_config_on_cuda_is_the_baselines(device, monkeypatch):
    """Field by field: what differs is in OURS, and nothing else. Transformer Engine's kernels are only named."""
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    from r1train.model import spec_deepseek

    fused = ("permute", "permute_with_probs", "sort_chunks_by_index", "sort_chunks_by_index_with_probs", "unpermute")
    for name in fused:
        monkeypatch.setattr(moe_utils, f"fused_{name}", object())
    cfg = load_config(OVERRIDES, check_files=False)
    ours = spec_deepseek.transformer_config(cfg.model, cfg.parallel, cfg.optim, "cuda")
    baseline = MLATransformerConfig(**BASELINE, **SIZES, moe_router_bias_update_rate=1e-3)
    names = [field.name for field in dataclasses.fields(ours) if field.name not in DRAWN]
    differing = {name: getattr(ours, name) for name in names if getattr(ours, name) != getattr(baseline, name)}
    assert differing == OURS


def test_flops_and_parameters_are_the_baselines():
    """Its formula gives 20.7 GFLOP per token (422 TFLOP/s at 20,370 tokens/s), 4.56 B parameters."""
    model = load_config(OVERRIDES, check_files=False).model
    h, experts, seq = 7168, 16, 4096
    attention = h * 1536 + 1536 + 1536 * 128 * 192 + h * 576 + 512 + 512 * 128 * 256 + 128 * 128 * h
    active = 5 * attention + 3 * h * 18432 + 4 * (3 * h * 2048 * 9 + experts * h) + 16384 * h
    baseline = 6 * active + 3 * 5 * 128 * (128 + 64 + 128) * 2 * seq / 2
    assert flops_per_token(model, seq_length=seq, mtp=True) == pytest.approx(baseline, rel=1e-4)
    assert baseline * 20_370 == pytest.approx(422e12, rel=2e-3)
    assert count_parameters(model).total == pytest.approx(4.56e9, rel=1e-3)
