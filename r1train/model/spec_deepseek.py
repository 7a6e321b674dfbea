"""ModelConfig -> megatron-core's MLATransformerConfig and layer specs: MLA, DeepSeekMoE, MTP."""

from dataclasses import replace
from functools import partial

from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec_for_backend, get_mlp_module_spec_for_backend
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig

from r1train.config.schema_model import ModelConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.config.schema_train import OptimConfig
from r1train.errors import ConfigError, Problem
from r1train.model.attention import LatentAttention, windowed
from r1train.model.mtp import MtpLayer
from r1train.model.router import Router
from r1train.model.spec import layer_spec, norm_unless_fused, shared_arguments, stage_layers


def _rope_arguments(model: ModelConfig) -> dict[str, object]:
    """YaRN with factor 1.0 equals plain RoPE and keeps TE's fused rotary kernel usable (V3: YaRN only from 32K on)."""
    yarn = model.yarn
    return {
        "rope_type": "yarn",
        "rotary_base": model.rope_base,
        "rotary_scaling_factor": yarn.factor if yarn else 1.0,
        "original_max_position_embeddings": yarn.original_max_positions if yarn else model.max_position_embeddings,
        "beta_fast": yarn.beta_fast if yarn else 32.0,
        "beta_slow": yarn.beta_slow if yarn else 1.0,
        "mscale": yarn.mscale if yarn else 1.0,
        "mscale_all_dim": yarn.mscale_all_dim if yarn else 1.0,
    }


def _fits_rope_kernel(model: ModelConfig) -> bool:
    """megatron-core's fused rotation of MLA is a Triton kernel whose blocks are powers of two wide."""
    return all(width.bit_count() == 1 for width in (model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim))


def check_gate(model: ModelConfig) -> None:
    """Raise ConfigError for weights of the chosen experts that megatron-core's router cannot compute.

    It divides sigmoid scores by their sum whenever a token has more than one expert, and only then. With softmax it
    normalises by choosing on logits, which changes what the score of a group is.
    """
    key, value, normalised = "model.norm_topk_prob", model.norm_topk_prob, model.num_experts_per_token > 1
    if model.router_score == "sigmoid" and value != normalised:
        what = f"with sigmoid scores and {model.num_experts_per_token} expert(s) per token the gate is " + (
            "always normalised" if normalised else "never normalised"
        )
        raise ConfigError([Problem(key, value, what, f"norm_topk_prob={str(normalised).lower()}")])
    if model.router_score == "softmax" and value and model.num_expert_groups > 1:
        what = "with softmax scores and expert groups the groups would be scored by logits instead of probabilities"
        raise ConfigError([Problem(key, value, what, "norm_topk_prob=false, or num_expert_groups=1")])


def _moe_arguments(model: ModelConfig, *, fused: bool) -> dict[str, object]:
    grouped = model.num_expert_groups > 1
    return {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.num_experts_per_token,
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": model.num_shared_experts * model.moe_ffn_hidden_size or None,
        "moe_layer_freq": [0] * model.num_dense_layers + [1] * model.num_moe_layers,
        "moe_router_score_function": model.router_score,
        "moe_router_pre_softmax": not (model.router_score == "softmax" and model.norm_topk_prob),
        "moe_router_enable_expert_bias": model.router_bias,
        "moe_router_bias_update_rate": 0.0,
        "moe_router_num_groups": model.num_expert_groups if grouped else None,
        "moe_router_group_topk": model.num_groups_per_token if grouped else None,
        "moe_router_topk_scaling_factor": model.routed_scaling_factor,
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_aux_loss_coeff": model.sequence_loss_coef,
        "moe_router_dtype": "fp32",
        "moe_grouped_gemm": fused,
        "moe_permute_fusion": fused,
        "moe_router_fusion": fused,
    }


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, optim: OptimConfig, device_type: str
) -> MLATransformerConfig:
    """The megatron-core config of this model in this layout.

    Raises ConfigError for a gate that megatron-core cannot express, and what it raises itself for layouts it refuses.
    """
    check_gate(model)
    fused = device_type == "cuda"
    return MLATransformerConfig(
        multi_latent_attention=True,
        q_lora_rank=model.q_lora_rank,
        kv_lora_rank=model.kv_lora_rank,
        qk_head_dim=model.qk_nope_head_dim,
        qk_pos_emb_head_dim=model.qk_rope_head_dim,
        v_head_dim=model.v_head_dim,
        qk_layernorm=True,
        mtp_num_layers=model.mtp_depth or None,
        **shared_arguments(model, parallel, optim, fused=fused)
        | {"apply_rope_fusion": fused and _fits_rope_kernel(model)},
        **_rope_arguments(model),
        **_moe_arguments(model, fused=fused),
    )


def _layer_spec(
    config: MLATransformerConfig, backend: BackendSpecProvider, *, moe: bool, window: int | None = None
) -> ModuleSpec:
    """One decoder layer: MLA, then a dense or an expert feed-forward. TE fuses the latent norms into up-projections."""
    core = backend.core_attention()
    fused = backend.fuse_layernorm_and_linear()
    up_projection = backend.column_parallel_layer_norm_linear() if fused else backend.column_parallel_linear()
    down_projection = backend.linear() if fused else backend.column_parallel_linear()
    latent_norm = IdentityOp if fused else backend.layer_norm(for_qk=True)
    attention = ModuleSpec(
        module=LatentAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=backend.column_parallel_linear(),
            linear_q_down_proj=down_projection,
            linear_q_up_proj=up_projection,
            linear_kv_down_proj=down_projection,
            linear_kv_up_proj=up_projection,
            core_attention=core if window is None else windowed(core, window),
            linear_proj=backend.row_parallel_linear(),
            q_layernorm=latent_norm,
            kv_layernorm=latent_norm,
        ),
    )
    feed_forward = get_mlp_module_spec_for_backend(
        backend=backend,
        num_experts=config.num_moe_experts if moe else None,
        moe_grouped_gemm=config.moe_grouped_gemm if moe else False,
    )
    if moe:
        submodules = replace(feed_forward.keywords["submodules"], router=Router)
        feed_forward = partial(feed_forward, submodules=submodules)
    return layer_spec(
        backend,
        attention=attention,
        feed_forward=feed_forward,
        input_norm=backend.layer_norm(),
        mlp_norm=backend.layer_norm() if moe else norm_unless_fused(backend),
    )


def decoder_spec(
    config: MLATransformerConfig,
    backend: BackendSpecProvider,
    vp_stage: int | None = None,
    windows: tuple[int | None, ...] | None = None,
) -> TransformerBlockSubmodules:
    """The decoder layers of this pipeline stage (layer numbers start at 0 in moe_layer_freq and windows)."""
    layers = [
        _layer_spec(config, backend, moe=bool(is_moe), window=window)
        for is_moe, window in zip(config.moe_layer_freq, windows or [None] * config.num_layers, strict=True)
    ]
    return stage_layers(config, layers, backend, vp_stage)


def mtp_spec(config: MLATransformerConfig, backend: BackendSpecProvider, vp_stage: int | None = None):
    """The multi-token-prediction block: one MoE layer like the last decoder layer; None on stages without it."""
    if config.mtp_num_layers is None:
        return None
    layer = _layer_spec(config, backend, moe=True)
    spec = get_gpt_mtp_block_spec_for_backend(config, layer, backend, vp_stage=vp_stage)
    if spec is not None:
        for mtp_layer in spec.layer_specs:
            mtp_layer.module = MtpLayer
    return spec
