"""Config -> Trainer: model in its data-parallel wrapper, optimizer, and the state they start from."""

import logging
from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.transformer_config import MLATransformerConfig

from r1train.config.schema import RunConfig
from r1train.dist.init import Device
from r1train.model.build import build_model
from r1train.model.gpt import R1Model
from r1train.train.optim import build_optimizer
from r1train.train.state import TrainState


@dataclass
class Trainer:
    """Everything a stage trains with. `state` is replaced, never edited; `total_steps` bounds schedules by fraction."""

    cfg: RunConfig
    device: Device
    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    total_steps: int
    state: TrainState = field(default_factory=TrainState)

    @property
    def module(self) -> R1Model:
        """The bare model chunk of this rank."""
        return self.model.module

    @property
    def model_config(self) -> MLATransformerConfig:
        return self.module.config


def wrap_model(cfg: RunConfig, module: R1Model) -> DistributedDataParallel:
    """Gradient buffers in fp32, summed over data-parallel ranks when the last micro-batch is done."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=cfg.parallel.overlap_grad_reduce,
        overlap_param_gather=cfg.parallel.overlap_param_gather,
        use_distributed_optimizer=cfg.optim.distributed,
    )
    # It warns that it computes the parameter layout itself: the same function on the same arguments.
    logging.getLogger("megatron.core.distributed.distributed_data_parallel").setLevel(logging.ERROR)
    model = DistributedDataParallel(module.config, ddp_config, module)
    module.config.finalize_model_grads_func = finalize_model_grads
    module.config.no_sync_func = model.no_sync
    return model


def build_trainer(cfg: RunConfig, device: Device, *, total_steps: int) -> Trainer:
    """A trainer with initial weights at step 0; train/checkpoint.py loads something else into it."""
    model = wrap_model(cfg, build_model(cfg, device))
    return Trainer(cfg, device, model, build_optimizer(cfg.optim, model, device), total_steps)
