"""DenseModelConfig -> megatron-core's TransformerConfig and layer specs: GQA and SwiGLU, as in Llama and Qwen2."""

from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from r1train.config.schema_model import DenseModelConfig, Llama3RopeConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.config.schema_train import OptimConfig
from r1train.model.spec import layer_spec, norm_unless_fused, shared_arguments, stage_layers


def transformer_config(
    model: DenseModelConfig, parallel: ParallelConfig, optim: OptimConfig, device_type: str
) -> TransformerConfig:
    """The megatron-core config of this model in this layout; raises what megatron-core raises for one it refuses."""
    return TransformerConfig(
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        add_qkv_bias=model.qkv_bias,
        **shared_arguments(model, parallel, optim, fused=device_type == "cuda"),
    )


def decoder_spec(
    config: TransformerConfig, backend: BackendSpecProvider, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The decoder layers of this pipeline stage, all alike. TE fuses both norms into the linear layers behind them."""
    fused = backend.fuse_layernorm_and_linear()
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=backend.column_parallel_layer_norm_linear() if fused else backend.column_parallel_linear(),
            core_attention=backend.core_attention(),
            linear_proj=backend.row_parallel_linear(),
        ),
    )
    norm = norm_unless_fused(backend)
    feed_forward = get_mlp_module_spec_for_backend(backend=backend)
    layer = layer_spec(backend, attention=attention, feed_forward=feed_forward, input_norm=norm, mlp_norm=norm)
    return stage_layers(config, [layer] * config.num_layers, backend, vp_stage)


def scale_rope(rope: RotaryEmbedding, scaling: Llama3RopeConfig) -> None:
    """Llama 3.1's frequencies in place of the plain ones. GPTModel's own argument sets the factor only.

    It fixes the rest at Llama 3.1's values: low 1, high 4, 8192 positions.
    """
    rope.inv_freq = rope._apply_scaling(
        rope.inv_freq,
        factor=scaling.factor,
        low_freq_factor=scaling.low_freq_factor,
        high_freq_factor=scaling.high_freq_factor,
        original_max_position_embeddings=scaling.original_max_positions,
    )
