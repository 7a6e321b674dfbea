"""Tensor parallelism while tokens are generated: sequences stay whole, and ranks of one replica agree on what is drawn.

Training cuts sequences over tensor-parallel ranks between the matrix products (sequence parallelism). A decode step has
one token per sequence, which cannot be cut: every rank holds all tokens, and row-parallel layers all-reduce.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

# Where megatron-core's modules and Transformer Engine's keep it: linear layers and configs, and the embedding.
_SWITCHES = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")


@contextmanager
def whole_sequences(model: MegatronModule) -> Iterator[None]:
    """Forwards inside take and give whole sequences; afterwards, also after an error, all is as it was.

    megatron-core's set_model_to_sequence_parallel does not know which modules had it on, and leaves copies of the
    config as they are.
    """
    holders: list[object] = []
    for module in model.modules():
        holders.append(module)
        config = vars(module).get("config")
        if isinstance(config, TransformerConfig):
            holders.append(config)
    changed = [(one, name) for one in holders for name in _SWITCHES if vars(one).get(name) is True]
    try:
        for one, name in changed:
            setattr(one, name, False)
        yield
    finally:
        for one, name in changed:
            setattr(one, name, True)


def from_first_tensor_rank(tensor: torch.Tensor) -> torch.Tensor:
    """The first tensor-parallel rank's values in this tensor, on every rank of the replica (in place).

    Logits are gathered and so are the same to rounding; a draw on a boundary must not part the ranks.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        torch.distributed.broadcast(tensor, src=torch.distributed.get_global_rank(group, 0), group=group)
    return tensor
