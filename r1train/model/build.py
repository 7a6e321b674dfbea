"""Build this rank's model chunk: the one place that knows which megatron-core model class is used."""

import logging

from megatron.core import parallel_state

from r1train.config.schema import RunConfig
from r1train.dist.init import Device
from r1train.model.gpt import R1Model
from r1train.model.init_weights import init_weights
from r1train.model.spec import backend_for, decoder_spec, mtp_spec, transformer_config


def build_model(cfg: RunConfig, device: Device) -> R1Model:
    """This rank's pipeline stage of the model with initial weights, in params dtype, on `device`."""
    # The class is deprecated in favour of HybridModel, whose norms are Transformer Engine's: it cannot run on CPU.
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
    config = transformer_config(cfg.model, cfg.parallel, cfg.optim, device.type)
    backend = backend_for(device.type)
    model = R1Model(
        config,
        decoder_spec(config, backend),
        vocab_size=cfg.model.vocab_size,
        max_sequence_length=cfg.model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        mtp_block_spec=mtp_spec(config, backend),
    )
    model = model.to(device.torch_device, dtype=config.params_dtype)
    init_weights(model, seed=cfg.seed, std=cfg.model.init_std)
    return model
