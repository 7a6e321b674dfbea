"""Point to point between pipeline stages, for generation: hidden states forward, sampled tokens back."""

import torch
from megatron.core import parallel_state


def receive(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this shape from the previous stage."""
    buffer = torch.empty(shape, dtype=dtype, device=torch.cuda.current_device())
    torch.distributed.recv(buffer, src=parallel_state.get_pipeline_model_parallel_prev_rank())
    return buffer


def send(tensor: torch.Tensor) -> None:
    """A tensor to the next stage."""
    torch.distributed.send(tensor.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())


def from_last(tensor: torch.Tensor) -> torch.Tensor:
    """The last stage's values in this tensor, on every stage (in place where there are several stages)."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() > 1:
        torch.distributed.broadcast(tensor, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return tensor
