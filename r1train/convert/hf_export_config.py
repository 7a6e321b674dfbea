"""Our model config -> Hugging Face's config.json, complete enough for transformers and vLLM as it is.

vLLM reads scoring_func and topk_method, which transformers does not write; every YaRN field is spelled out.
"""

from typing import Any

from r1train.config.schema_model import DenseModelConfig, ModelConfig
from r1train.convert.hf_config import FP8_CONFIG
from r1train.errors import CheckpointError


def model_to_hf(model: ModelConfig | DenseModelConfig, *, dtype: str, fp8: bool = False) -> dict[str, Any]:
    """Fields of config.json. dtype: of the tensors that are not FP8 ("bfloat16"). Token ids are added by the caller.

    Raises CheckpointError for a model that no supported class of transformers computes.
    """
    fields = _deepseek(model) if isinstance(model, ModelConfig) else _dense(model)
    fields |= {"hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True, "torch_dtype": dtype}
    return fields | ({"quantization_config": dict(FP8_CONFIG)} if fp8 else {})


def _class(model: ModelConfig) -> tuple[str, str, str]:
    """model_type, class and topk_method of transformers for this gate; CheckpointError where there is none."""
    if model.token_merging is not None:
        raise CheckpointError(
            f"model {model.name}: token_merging is an experiment that no Hugging Face or vLLM class has. "
            "Fix: train with token_merging=null to export"
        )
    if model.attention_windows is not None and any(model.attention_windows):
        raise CheckpointError(
            f"model {model.name}: attention_windows={list(model.attention_windows)}, but DeepSeek's classes in "
            "transformers and vLLM have no windows and would compute something else. Fix: train with "
            "attention_windows=null to export"
        )
    if model.num_expert_groups > 1 and model.num_experts_per_token != 2 * model.num_groups_per_token:
        raise CheckpointError(
            f"model {model.name}: transformers scores a group of experts by its best two, this model by its best "
            f"{model.num_experts_per_token / model.num_groups_per_token:g}. Fix: export a model whose "
            "num_experts_per_token is twice its num_groups_per_token, as in DeepSeek-V3"
        )
    gate = (model.router_score, model.router_bias, model.norm_topk_prob)
    grouped = model.num_expert_groups > 1
    if gate == ("sigmoid", True, True):
        kind, name, method = "deepseek_v3", "DeepseekV3ForCausalLM", "noaux_tc"
    elif gate == ("softmax", False, False) and not grouped and model.mtp_depth == 0:
        kind, name, method = "deepseek_v2", "DeepseekV2ForCausalLM", "greedy"
    else:
        raise CheckpointError(
            f"model {model.name}: transformers has no class for router_score={model.router_score}, "
            f"router_bias={model.router_bias}, norm_topk_prob={model.norm_topk_prob}, "
            f"num_expert_groups={model.num_expert_groups}, mtp_depth={model.mtp_depth}. Fix: export a model with "
            "DeepSeek-V3's gate (sigmoid, bias, normalised) or V2-Lite's (softmax, no bias, not normalised, one group)"
        )
    return kind, name, method


def _deepseek(model: ModelConfig) -> dict[str, Any]:
    kind, name, method = _class(model)
    yarn = model.yarn
    return {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "first_k_dense_replace": model.num_dense_layers,
        "moe_layer_freq": 1,
        "intermediate_size": model.ffn_hidden_size,
        "moe_intermediate_size": model.moe_ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_attention_heads,
        "q_lora_rank": model.q_lora_rank,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_nope_head_dim": model.qk_nope_head_dim,
        "qk_rope_head_dim": model.qk_rope_head_dim,
        "v_head_dim": model.v_head_dim,
        "n_routed_experts": model.num_experts,
        "num_experts_per_tok": model.num_experts_per_token,
        "n_shared_experts": model.num_shared_experts,
        "n_group": model.num_expert_groups,
        "topk_group": model.num_groups_per_token,
        "scoring_func": model.router_score,
        "topk_method": method,
        "norm_topk_prob": model.norm_topk_prob,
        "routed_scaling_factor": model.routed_scaling_factor,
        "aux_loss_alpha": model.sequence_loss_coef,
        "seq_aux": True,
        "ep_size": 1,
        "num_nextn_predict_layers": model.mtp_depth,
        "rope_theta": model.rope_base,
        "rope_scaling": yarn
        and {
            "type": "yarn",
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_positions,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        },
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        "initializer_range": model.init_std,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def _dense(model: DenseModelConfig) -> dict[str, Any]:
    if model.qkv_bias and (model.rope_scaling or model.head_dim * model.num_attention_heads != model.hidden_size):
        raise CheckpointError(
            f"model {model.name}: transformers' Qwen2 has no class for rope_scaling of Llama 3 or a free head_dim. "
            "Fix: qkv_bias=false (llama), or rope_scaling=null and head_dim=hidden_size/num_attention_heads"
        )
    scaling = model.rope_scaling
    own = (
        {"use_sliding_window": False, "sliding_window": None}
        if model.qkv_bias
        else {"attention_bias": False, "mlp_bias": False, "head_dim": model.head_dim}
    )
    return {
        "architectures": ["Qwen2ForCausalLM" if model.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if model.qkv_bias else "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "tie_word_embeddings": model.tie_embeddings,
        "rope_theta": model.rope_base,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        "initializer_range": model.init_std,
        **own,
    }
