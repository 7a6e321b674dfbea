"""A module's tensors under their global names and places: megatron-core's sharded state dict, flat, for any layout."""

from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)


def sharded_tensors(tree: object) -> list[ShardedTensor]:
    """Every sharded tensor of a nested state dict; factories (the fused gate and up projection) give their parts.

    A tensor's key and global_offset name this rank's part; its data shares storage with the parameter or buffer.
    """
    if isinstance(tree, ShardedTensor):
        return [tree]
    if isinstance(tree, ShardedTensorFactory):
        return sharded_tensors(tree.build())
    if isinstance(tree, dict):
        return [tensor for value in tree.values() for tensor in sharded_tensors(value)]
    if isinstance(tree, (list, tuple)):
        return [tensor for value in tree for tensor in sharded_tensors(value)]
    return []


def without_extra_state(state: dict[str, object]) -> dict[str, object]:
    """The state dict with every module's "extra state" left as it is in the module: neither stored nor loaded.

    It is Transformer Engine's memory of delayed FP8 scaling, which no recipe of ours uses; local modules have none.
    With it a checkpoint would need an object per layer and expert that no conversion and no other backend can make.
    """
    return {
        name: LocalNonpersistentObject(value.data)
        if isinstance(value, ShardedObject) and "_extra_state" in value.key
        else value
        for name, value in state.items()
    }
