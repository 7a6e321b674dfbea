"""RMSNorm without Transformer Engine, also under sequence parallelism (megatron-core's torch wrapper refuses that)."""

import torch
from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467 eq. 4), weight [hidden_size].

    Takes the arguments that megatron-core passes to a norm. Under sequence parallelism each rank normalises its own
    tokens, so the weight is marked for the gradient sum over tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_unused: object):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel
