"""The gate of the expert layers: megatron-core's, with two mends, a count of its load and a tape of its choices."""

import torch
from megatron.core.transformer.moe.router import TopKRouter

from r1train.model.replay import RouteTape


class Router(TopKRouter):
    """TopKRouter that can leave padding out of its statistics, and that reports its load.

    megatron-core 0.19.2 combines the map [tokens, experts] with the mask [tokens] without the missing axis; with a mask
    it scales the balance loss of ranks that share a sequence by their number too often, because its sum over ranks
    overwrites the rank's own count; and it counts the load only where there is an expert bias.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        # megatron-core asks router_replay for the experts; the tape changes nothing unless it is told to.
        self.router_replay = self.tape = RouteTape()
        self.step_load: torch.Tensor | None = None
        self._tokens_per_rank: torch.Tensor | None = None
        if not self.enable_expert_bias:
            shape, device = self.config.num_moe_experts, torch.cuda.current_device()
            del self.local_tokens_per_expert  # None, which a buffer cannot replace
            self.register_buffer("local_tokens_per_expert", torch.zeros(shape, device=device), persistent=False)

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """megatron-core's, after which the tape sees where the tokens really go.

        Transformer Engine's fused kernels ask no tape and know no padding: forwards with either go without them.
        """
        wanted = self.config.moe_router_fusion
        self.config.moe_router_fusion = wanted and padding_mask is None and not self.tape.in_use
        try:
            probs, routing_map = super().routing(logits, padding_mask=padding_mask)
        finally:
            self.config.moe_router_fusion = wanted
        self.tape.confirm(routing_map)
        return probs, routing_map

    def keep_load(self) -> None:
        """Set aside, as step_load [experts], what this rank routed since the last time; the count starts again.

        With an expert bias finalize_model_grads needs the count, too, and resets it.
        """
        self.step_load = self.local_tokens_per_expert.clone()
        if not self.enable_expert_bias:
            self.local_tokens_per_expert.zero_()

    def _apply_seq_aux_loss(
        self, probs: torch.Tensor, scores: torch.Tensor, routing_map: torch.Tensor, *args: int, with_padding_mask: bool
    ) -> torch.Tensor:
        if with_padding_mask:
            tokens = routing_map.sum() / self.topk
            torch.distributed.all_reduce(tokens, group=self.tp_cp_group)
            self._tokens_per_rank = tokens / self.tp_cp_group.size()
        return super()._apply_seq_aux_loss(probs, scores, routing_map, *args, with_padding_mask=with_padding_mask)

    def attach_and_log_load_balancing_loss(
        self, *args: object, valid_token_count: int | torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        """megatron-core's, with the mean count of the ranks that share the sequence: it multiplies by their number."""
        if self._tokens_per_rank is not None:
            valid_token_count, self._tokens_per_rank = self._tokens_per_rank, None
        return super().attach_and_log_load_balancing_loss(*args, valid_token_count=valid_token_count, **kwargs)

    def _apply_expert_bias(self, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
        if padding_mask is not None:
            routing_map = routing_map & ~padding_mask[:, None]
        super()._apply_expert_bias(routing_map)
        # As megatron-core counts: not in evaluation, and once where activations are recomputed.
        if not self.enable_expert_bias and torch.is_grad_enabled():
            with torch.no_grad():
                self.local_tokens_per_expert += routing_map.sum(dim=0)
