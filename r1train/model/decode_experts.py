"""Feed-forward of a decode step: as in training, or with every expert for every token, which has no host sync.

megatron-core's dispatcher asks the host how many tokens each expert gets; that wait costs more than a small batch's
arithmetic, and no CUDA graph can hold it. Here every expert computes every token, and the gate of an expert that was
not chosen is zero: more arithmetic, static shapes.
Legend: n tokens, h hidden, f expert width, E experts.
"""

from collections.abc import Callable

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

FeedForward = Callable[[MegatronModule, Tensor], Tensor]

# Up to so many tokens reading the experts' weights takes longer than multiplying with them (an H200 does about 200
# multiply-adds per BF16 weight that it reads, a good half of that in practice), and a batch reads most experts anyway.
BANDWIDTH_TOKENS = 128
# Beyond, so many operations a layer cost about a millisecond; the dispatcher's waits and launches cost 7 to 10 on an
# H200 (40 to 60 ms a step of six layers, measured).
LAYER_OPERATIONS = 2e11


def dispatched(mlp: MegatronModule, inputs: Tensor) -> Tensor:
    """[s, b, h] -> [s, b, h]: the layer's feed-forward as in training."""
    output, _ = mlp(inputs)
    return output


def every_expert(mlp: MegatronModule, inputs: Tensor) -> Tensor:
    """[s, b, h] -> [s, b, h]: the same, never waiting for the device. Needs all experts on this rank, and no_grad.

    The router is the layer's own, so its bias, groups and scaling count, and its tape hears of every choice. The
    weights are the parameters themselves: what an update writes into them is what the next step reads.
    """
    if not isinstance(mlp, MoELayer):
        return dispatched(mlp, inputs)
    gates, _ = mlp.router(inputs)  # [n, E]
    up, down = expert_weights(mlp.experts)
    if up[0].data_ptr() > up[-1].data_ptr():
        # megatron-core's parameter buffers hold the last parameter first; upwards in memory, they are one tensor.
        up, down, gates = up[::-1], down[::-1], gates.flip(1)
    gate, linear = _products(inputs.flatten(0, 1), up).chunk(2, dim=-1)
    weighted = (silu(gate) * linear * gates.t()[:, :, None]).to(inputs.dtype)
    output = _products(weighted, down).sum(dim=0).view_as(inputs)
    return output if mlp.shared_experts is None else output + mlp.shared_experts(inputs)


def every_expert_pays(config: TransformerConfig, tokens: int) -> bool:
    """Whether so many tokens are few enough to be computed by every expert."""
    if config.num_moe_experts is None or tokens <= BANDWIDTH_TOKENS:
        return True
    operations = 6 * config.hidden_size * config.moe_ffn_hidden_size * config.num_moe_experts
    return tokens * operations <= LAYER_OPERATIONS


def expert_weights(experts: MegatronModule) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of this rank's experts, in order: gate over up [2 f, h], and down [h, f]."""
    if isinstance(experts, TEGroupedMLP):
        linears = (experts.linear_fc1, experts.linear_fc2)
        names = [f"weight{expert}" for expert in range(experts.num_local_experts)]
        up, down = ([linear.get_parameter(name) for name in names] for linear in linears)
    else:
        assert isinstance(experts, SequentialMLP)
        up = [expert.linear_fc1.weight for expert in experts.local_experts]
        down = [expert.linear_fc2.weight for expert in experts.local_experts]
    return up, down


def _products(inputs: Tensor, weights: list[Tensor]) -> Tensor:
    """inputs [n, i] for all experts or [E, n, i], weights E x [o, i] -> [E, n, o]."""
    stack = _stacked(weights)
    if stack is not None:
        return torch.matmul(inputs, stack.transpose(1, 2))
    outputs = inputs.new_empty((len(weights), inputs.shape[-2], len(weights[0])))
    for expert, weight in enumerate(weights):
        torch.mm(inputs if inputs.dim() == 2 else inputs[expert], weight.t(), out=outputs[expert])
    return outputs


def _stacked(weights: list[Tensor]) -> Tensor | None:
    """A view [E, o, i] of weights that lie evenly in one storage, as in a data-parallel buffer; else None."""
    first, size = weights[0], weights[0].element_size()
    storage, addresses = first.untyped_storage().data_ptr(), [weight.data_ptr() for weight in weights]
    distances = {after - before for before, after in zip(addresses, addresses[1:], strict=False)}
    if len(distances) != 1 or any(weight.untyped_storage().data_ptr() != storage for weight in weights):
        return None
    (distance,) = distances
    if distance <= 0 or distance % size or not first.is_contiguous():
        return None
    return first.as_strided((len(weights), *first.shape), (distance // size, *first.stride()))
