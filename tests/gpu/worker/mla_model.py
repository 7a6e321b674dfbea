"""The small model of the tests of vLLM: its MLA kernels and its FP8 blocks take it."""

# DeepSeek's latent and head widths, everything else small, and every side of an FP8 matrix a multiple of 128.
MODEL = {
    "hidden_size": 512,
    "num_layers": 4,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 16,
    "q_lora_rank": 256,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_experts": 16,
    "num_experts_per_token": 4,
    "num_expert_groups": 4,
    "num_groups_per_token": 2,
    "moe_ffn_hidden_size": 256,
}
MODEL_OVERRIDES = [f"model.{name}={value}" for name, value in MODEL.items()]
