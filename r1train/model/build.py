"""Build this rank's model chunks: the one place that knows which megatron-core model class is used."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

from r1train.config.layout import virtual_stages
from r1train.config.schema import RunConfig
from r1train.config.schema_model import AnyModelConfig, DenseModelConfig, ModelConfig
from r1train.dist.init import Device
from r1train.dist.probe import apex_fusion
from r1train.model import spec_deepseek, spec_dense
from r1train.model.gpt import R1Model
from r1train.model.init_weights import init_weights
from r1train.model.spec import backend_for
from r1train.model.token_merging import with_merging


def build_model(cfg: RunConfig, device: Device) -> R1Model:
    """This rank's pipeline stage of the model; only for layouts that give a rank one stage. As build_chunks."""
    (model,) = build_chunks(cfg, device)
    return model


def build_chunks(cfg: RunConfig, device: Device) -> list[R1Model]:
    """This rank's pipeline stages of the model with initial weights, in params dtype, on `device`; buffers in fp32.

    One chunk, or one per virtual stage. They share one megatron-core config, so what a schedule changes in it while
    training counts for all of them.
    """
    # The class is deprecated in favour of HybridModel, whose norms are Transformer Engine's: it cannot run on CPU.
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
    spec = spec_dense if isinstance(cfg.model, DenseModelConfig) else spec_deepseek
    config = spec.transformer_config(cfg.model, cfg.parallel, cfg.optim, device.type)
    count = virtual_stages(cfg.parallel)
    with _head_without_apex():
        chunks = [_chunk(cfg.model, config, device, vp_stage) for vp_stage in (range(count) if count > 1 else (None,))]
    for chunk in chunks:
        chunk.to(device.torch_device)
        # The parameters alone: a count of tokens in BF16 would stand still at 256, and rotary tables are of positions.
        for parameter in chunk.parameters():
            parameter.data = parameter.data.to(config.params_dtype)
        init_weights(chunk, seed=cfg.seed, std=cfg.model.init_std)
    return chunks


@contextmanager
def _head_without_apex() -> Iterator[None]:
    """Build megatron-core's own linear layers (the LM head) with a config that asks for fused weight gradients.

    Without apex such a layer refuses to be built, though Transformer Engine's layers, which read the same setting, have
    a kernel of their own. Here it is built unfused.
    """
    init = ColumnParallelLinear.__init__

    def unfused(layer: ColumnParallelLinear, *args: object, config: TransformerConfig, **options: object) -> None:
        wanted, config.gradient_accumulation_fusion = config.gradient_accumulation_fusion, apex_fusion()
        init(layer, *args, config=config, **options)
        config.gradient_accumulation_fusion = wanted

    ColumnParallelLinear.__init__ = unfused
    try:
        yield
    finally:
        ColumnParallelLinear.__init__ = init


def _chunk(model: AnyModelConfig, config: TransformerConfig, device: Device, vp_stage: int | None) -> R1Model:
    build = _dense if isinstance(model, DenseModelConfig) else _deepseek
    return build(model, config, device, vp_stage)


def _deepseek(model: ModelConfig, config: TransformerConfig, device: Device, vp_stage: int | None) -> R1Model:
    backend = backend_for(device.type)
    decoder = spec_deepseek.decoder_spec(config, backend, vp_stage, model.attention_windows)
    return R1Model(
        config,
        with_merging(decoder, model.token_merging),
        **_shared_arguments(model, vp_stage),
        mtp_block_spec=spec_deepseek.mtp_spec(config, backend, vp_stage),
    )


def _dense(model: DenseModelConfig, config: TransformerConfig, device: Device, vp_stage: int | None) -> R1Model:
    built = R1Model(
        config,
        spec_dense.decoder_spec(config, backend_for(device.type), vp_stage),
        **_shared_arguments(model, vp_stage),
        share_embeddings_and_output_weights=model.tie_embeddings,
        rotary_base=model.rope_base,
    )
    if model.rope_scaling is not None:
        spec_dense.scale_rope(built.rotary_pos_emb, model.rope_scaling)
    return built


def _shared_arguments(model: AnyModelConfig, vp_stage: int | None) -> dict[str, object]:
    return {
        "vocab_size": model.vocab_size,
        "max_sequence_length": model.max_position_embeddings,
        "pre_process": parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        "post_process": parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        "position_embedding_type": "rope",
        "vp_stage": vp_stage,
    }
