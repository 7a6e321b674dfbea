"""Config -> Trainer: model chunks in their data-parallel wrappers, optimizer, and the state they start from."""

import logging
from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig

from r1train.config.schema import MAIN_HEAD_STAGES, RunConfig
from r1train.dist.init import Device
from r1train.model.build import build_chunks
from r1train.model.gpt import R1Model
from r1train.model.value_head import add_value_head
from r1train.train.backends import report_backends
from r1train.train.balance import finalize_and_count
from r1train.train.ema import WeightAverage, build_average
from r1train.train.optim import build_optimizer
from r1train.train.state import TrainState


@dataclass
class Trainer:
    """Everything a stage trains with. `state` is replaced, never edited; `total_steps` bounds schedules by fraction.

    chunks: this rank's model, one chunk or one per virtual pipeline stage; average: of the weights, where asked for.
    """

    cfg: RunConfig
    device: Device
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    total_steps: int
    average: WeightAverage | None = None
    state: TrainState = field(default_factory=TrainState)

    @property
    def model(self) -> DistributedDataParallel:
        """The only chunk: stages that generate run without virtual pipeline stages (config/check_layout.py)."""
        (chunk,) = self.chunks
        return chunk

    @property
    def module(self) -> R1Model:
        """The bare model of the only chunk."""
        return self.model.module

    @property
    def modules(self) -> list[R1Model]:
        """The bare chunks."""
        return [chunk.module for chunk in self.chunks]

    @property
    def model_config(self) -> TransformerConfig:
        """megatron-core's config, the same object for every chunk."""
        return self.chunks[0].module.config

    def gather_weights(self) -> None:
        """Bring every rank's weights up to date where that is left to the next forward (overlap_param_gather)."""
        if self.cfg.parallel.overlap_param_gather:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)


def freeze_mtp(modules: list[R1Model]) -> None:
    """Keep the MTP modules out of gradient buffers and optimizer: weight decay would shrink what no gradient renews.

    Before wrap_chunks. Checkpoints hold them as ever; embedding and head, which they share, go on training.
    """
    for module in modules:
        if module.mtp_process:
            module.mtp.requires_grad_(False)


def wrap_chunks(cfg: RunConfig, modules: list[R1Model]) -> list[DistributedDataParallel]:
    """Gradient buffers in fp32, summed over data-parallel ranks when the last micro-batch is done."""
    parallel, config = cfg.parallel, modules[0].config
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=True,
    )
    # It warns that it computes the parameter layout itself: the same function on the same arguments.
    logging.getLogger("megatron.core.distributed.distributed_data_parallel").setLevel(logging.ERROR)
    # Later chunks go as one bucket each: the pipeline hides their reductions anyway.
    chunks = [
        DistributedDataParallel(config, ddp_config, module, disable_bucketing=index > 0)
        for index, module in enumerate(modules)
    ]
    config.finalize_model_grads_func = finalize_and_count
    config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    if parallel.overlap_grad_reduce and len(chunks) > 1:
        config.grad_sync_func = [chunk.start_grad_sync for chunk in chunks]
    return chunks


def build_trainer(cfg: RunConfig, device: Device, *, total_steps: int, scalar_head: bool = False) -> Trainer:
    """A trainer with initial weights at step 0; train/checkpoint.py loads something else into it.

    scalar_head: the last stage gets a value head too (reward models). Where the stage trains the main head alone, the
    MTP modules are frozen.
    """
    # Before the optimizer takes its memory: the average is built on the device and then moved to the host.
    average = build_average(cfg, device)
    modules = build_chunks(cfg, device)
    if scalar_head:
        for module in modules:
            add_value_head(module)
    if isinstance(cfg.stage, MAIN_HEAD_STAGES):
        freeze_mtp(modules)
    report_backends(cfg, device, modules)
    chunks = wrap_chunks(cfg, modules)
    return Trainer(cfg, device, chunks, build_optimizer(cfg.optim, chunks, device), total_steps, average)
