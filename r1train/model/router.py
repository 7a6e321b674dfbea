"""The gate of the expert layers: megatron-core's, with one mend."""

import torch
from megatron.core.transformer.moe.router import TopKRouter


class Router(TopKRouter):
    """TopKRouter that can leave padding out of the load which the expert biases follow.

    megatron-core 0.19.2 combines the map [tokens, experts] with the mask [tokens] without the missing axis.
    """

    def _apply_expert_bias(self, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
        if padding_mask is not None:
            routing_map = routing_map & ~padding_mask[:, None]
        super()._apply_expert_bias(routing_map)
