"""Initial weights that depend on the seed and each tensor's global name only, never on the layout."""

import hashlib

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.module import MegatronModule

from r1train.model.sharded import sharded_tensors


def _draw(tensor: ShardedTensor, *, seed: int, std: float) -> torch.Tensor:
    """This rank's part of the tensor: the whole tensor is drawn from a stream named after it, then cut.

    The prepended axes count layers and experts, so they belong to the name; the remaining axes are the tensor.
    """
    lead = tensor.prepend_axis_num
    name = repr((seed, tensor.key, tensor.global_offset[:lead]))
    generator = torch.Generator(device=tensor.data.device)
    generator.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1)
    whole = torch.empty(tensor.global_shape[lead:], dtype=torch.float32, device=tensor.data.device)
    whole.normal_(0.0, std, generator=generator)
    for axis, (start, size) in enumerate(zip(tensor.global_offset[lead:], tensor.local_shape, strict=True)):
        whole = whole.narrow(axis, start, size)
    return whole


@torch.no_grad()
def init_weights(module: MegatronModule, *, seed: int, std: float) -> None:
    """Fill the parameters in place: normal(0, std) for matrices (V3 report section 4.2), ones for norm weights.

    Biases become 0. std: standard deviation, dimensionless. Buffers (the experts' routing bias) keep their zeros.
    """
    parameters = {p.data_ptr() for p in module.parameters()}
    for tensor in sharded_tensors(module.sharded_state_dict()):
        inside_parameter = (
            tensor.data.untyped_storage().data_ptr() in parameters or tensor.data.data_ptr() in parameters
        )
        if not inside_parameter:
            continue
        if tensor.data.dim() == 1:
            tensor.data.fill_(0.0 if tensor.key.endswith(".bias") else 1.0)
        else:
            tensor.data.copy_(_draw(tensor, seed=seed, std=std))
