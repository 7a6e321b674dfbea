"""What both architectures share in their way to megatron-core: backends, common arguments, layers of a stage."""

import torch
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from r1train.config.layout import virtual_stages
from r1train.config.schema_model import AnyModelConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.config.schema_train import OptimConfig
from r1train.dist.probe import usable_dispatcher
from r1train.model.attention import CoreAttention
from r1train.model.norm import RMSNorm

PARAMS_DTYPE = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp8_blockwise": torch.bfloat16,
    "fp8_tensorwise": torch.bfloat16,
}
_FP8_RECIPE = {"fp8_blockwise": "blockwise", "fp8_tensorwise": "tensorwise"}

# Transformer Engine keeps the weight of a norm in the linear layer behind it; checkpoints name it after the norm, as
# the local modules do, so that both read each other's.
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "self_attention.linear_q_up_proj.layer_norm_": "self_attention.q_layernorm.",
    "self_attention.linear_kv_up_proj.layer_norm_": "self_attention.kv_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


class LocalBackend(LocalSpecProvider):
    """megatron-core's own linear layers with our RMSNorm and core attention: what runs where there is no CUDA."""

    def layer_norm(self, rms_norm: bool = True, for_qk: bool = False, has_residual: bool = False) -> type:
        del rms_norm, for_qk, has_residual  # one norm everywhere
        return RMSNorm

    def core_attention(self) -> type:
        return CoreAttention


def backend_for(device_type: str) -> BackendSpecProvider:
    """Which modules the layers are made of: Transformer Engine on CUDA, local ones on CPU."""
    return TESpecProvider() if device_type == "cuda" else LocalBackend()


def _parallel_arguments(parallel: ParallelConfig) -> dict[str, object]:
    chunks = virtual_stages(parallel)
    arguments: dict[str, object] = {
        "tensor_model_parallel_size": parallel.tp,
        "sequence_parallel": parallel.tp > 1,
        "pipeline_model_parallel_size": parallel.pp,
        "pipeline_model_parallel_layout": parallel.pp_layout,
        "context_parallel_size": parallel.cp,
        "expert_model_parallel_size": parallel.ep,
        "expert_tensor_parallel_size": parallel.etp,
        # megatron-core checks the dispatcher also where there are no experts: its default refuses variable lengths.
        "moe_token_dispatcher_type": usable_dispatcher(parallel.dispatcher),
        # Packed micro-batches differ in token count, so pipeline neighbours tell each other the shape. Not between
        # virtual stages: with two pipeline ranks megatron-core 0.19.2 would mix up the shapes of both directions.
        "variable_seq_lengths": parallel.pp > 1 and chunks == 1,
        # One batched exchange cannot tell the two directions apart where the next rank is also the previous one.
        "batch_p2p_comm": chunks == 1,
        "overlap_p2p_comm": chunks > 1,
        "overlap_moe_expert_parallel_comm": parallel.overlap_expert_all_to_all,
        "delay_wgrad_compute": parallel.delay_wgrad,
    }
    if parallel.recompute_modules:
        arguments |= {"recompute_granularity": "selective", "recompute_modules": list(parallel.recompute_modules)}
    return arguments


def shared_arguments(
    model: AnyModelConfig, parallel: ParallelConfig, optim: OptimConfig, *, fused: bool
) -> dict[str, object]:
    """Arguments of megatron-core's config that do not depend on the architecture. fused: Transformer Engine."""
    dtype = PARAMS_DTYPE[optim.precision]
    fp8 = {"fp8": "e4m3", "fp8_recipe": _FP8_RECIPE[optim.precision]} if optim.precision in _FP8_RECIPE else {}
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "ffn_hidden_size": model.ffn_hidden_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.rms_norm_eps,
        "persist_layer_norm": False,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": fused,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "perform_initialization": False,
        "use_cpu_initialization": not fused,
        "init_method_std": model.init_std,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "apply_rope_fusion": fused,
        "cross_entropy_loss_fusion": fused,
        "cross_entropy_fusion_impl": "te",
        "calculate_per_token_loss": True,
        **_parallel_arguments(parallel),
        **fp8,
    }


def layer_spec(
    backend: BackendSpecProvider, *, attention: ModuleSpec, feed_forward: object, input_norm: type, mlp_norm: type
) -> ModuleSpec:
    """One decoder layer: norm, attention, norm, feed-forward, each with its residual."""
    fused = backend.fuse_layernorm_and_linear()
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=input_norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=mlp_norm,
            mlp=feed_forward,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=FUSED_NORMS if fused else {},
        ),
    )


def norm_unless_fused(backend: BackendSpecProvider) -> type:
    """A norm in front of a linear layer that Transformer Engine would fuse with it."""
    return IdentityOp if backend.fuse_layernorm_and_linear() else backend.layer_norm()


def stage_layers(
    config: TransformerConfig, layers: list[ModuleSpec], backend: BackendSpecProvider, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Those of all decoder layers that this pipeline stage holds, and the final norm."""
    if config.pipeline_model_parallel_layout is not None:
        mine = config.pipeline_model_parallel_layout.get_layer_id_list(layer_type=LayerType.decoder, vp_stage=vp_stage)
    else:
        first = get_transformer_layer_offset(config, vp_stage=vp_stage)
        mine = range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage))
    return TransformerBlockSubmodules(layer_specs=[layers[i] for i in mine], layer_norm=backend.layer_norm())
