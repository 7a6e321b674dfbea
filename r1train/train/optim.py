"""The distributed optimizer: AdamW through megatron-core."""

from collections.abc import Callable

import torch
from megatron.core.dist_checkpointing.dict_utils import merge
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from r1train.config.schema_train import OptimConfig
from r1train.dist.init import Device
from r1train.model.spec import PARAMS_DTYPE

_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Optimizer state under the names of its parameters, whatever the layout.
_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def build_optimizer(optim: OptimConfig, chunks: list[DistributedDataParallel], device: Device) -> MegatronOptimizer:
    """AdamW over this rank's shard; norm weights and biases do not decay. The learning rate is set every step."""
    dtype = PARAMS_DTYPE[optim.precision]
    # Only Transformer Engine's FusedAdam keeps moments in another dtype than the master weights.
    precision_aware = (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and optim.moments_dtype == "bf16"
        and optim.cpu_offload_fraction == 0
    )
    offload = optim.cpu_offload_fraction > 0
    config = OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_distributed_optimizer=True,
        use_precision_aware_optimizer=precision_aware,
        exp_avg_dtype=_DTYPE[optim.moments_dtype] if precision_aware else torch.float32,
        exp_avg_sq_dtype=_DTYPE[optim.moments_dtype] if precision_aware else torch.float32,
        optimizer_cpu_offload=offload,
        optimizer_offload_fraction=optim.cpu_offload_fraction,
        overlap_cpu_optimizer_d2h_h2d=offload,
    )
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=device.type == "cuda")
    for group in optimizer.param_groups:
        # Norm weights and biases have a factor of 0. megatron-core multiplies in its own scheduler, which is not ours.
        group["weight_decay"] *= group["wd_mult"]
    return optimizer


def set_learning_rate(optimizer: MegatronOptimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def has_updates(optimizer: MegatronOptimizer) -> bool:
    """Whether it has done an update, or continues one that had: before that it has no moments. Collective."""
    found = torch.tensor(
        any(len(part.optimizer.state) > 0 for part in optimizer.chained_optimizers),
        dtype=torch.int32,
        device=torch.cuda.current_device(),
    )
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return bool(found)


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Give torch's AdamW zero moments and step 0, so that a loaded state has somewhere to go.

    megatron-core does this itself for Transformer Engine's FusedAdam, not for torch's, which also keeps a step tensor.
    """
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                part.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def optimizer_state(optimizer: MegatronOptimizer, model_state: dict[str, object]) -> dict[str, object]:
    """What a checkpoint keeps: moments and master weights by parameter name, and the number of updates.

    The rest of megatron-core's state is left out. Hyper-parameters come from the config, and their nesting depends on
    the layout: dense and expert weights share one optimizer without expert parallelism and have two with it.
    """
    state = optimizer.sharded_state_dict(model_state, is_loading=False, metadata=_FORMAT)
    tensors, local = extract_sharded_tensors_and_factories(state)
    updates = {group["step"] for group in _param_groups(local)}
    assert len(updates) == 1, updates
    return {"optimizer": tensors, "optimizer_updates": updates.pop()}


def load_optimizer_state(
    optimizer: MegatronOptimizer,
    model_state: dict[str, object],
    *,
    load: Callable[[dict[str, object]], dict[str, object]],
) -> dict[str, object]:
    """Ask `load` for what optimizer_state keeps, put it into the optimizer, and return all that `load` returned."""
    state = optimizer.sharded_state_dict(model_state, is_loading=True, metadata=_FORMAT)
    tensors, local = extract_sharded_tensors_and_factories(state)
    loaded = load({"optimizer": tensors})
    for group in _param_groups(local):
        group["step"] = loaded["optimizer_updates"]
    with torch.no_grad():
        optimizer.load_state_dict(merge(local, loaded["optimizer"]))
    return loaded


def _param_groups(local: dict) -> list[dict]:
    """Parameter groups of one optimizer's state, or of several optimizers' states by number."""
    parts = [local] if "optimizer" in local else local.values()
    return [group for part in parts for group in part["optimizer"]["param_groups"]]
