"""A scalar head on the model: one number per position from the final hidden state (R1 section 2.2.2, reward models)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from r1train.model.gpt import R1Model

NAME = "value_head"


class ValueHead(MegatronModule):
    """hidden [s, b, h] -> values [s, b] in float32. The same weight on every tensor-parallel rank; it starts at 0.

    At 0 every response scores alike, so the first loss of a pairwise model is ln 2 whatever the weights below.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Under sequence parallelism hidden is this rank's part of the sequence; values are of all of it."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return torch.nn.functional.linear(hidden.float(), self.weight.float())[..., 0]


def add_value_head(model: R1Model) -> None:
    """Give the last pipeline stage's chunk a head, as its submodule `value_head`; before it is wrapped for training."""
    if model.post_process:
        device = next(model.parameters()).device
        model.add_module(NAME, ValueHead(model.config).to(device))


def value_head(model: R1Model) -> ValueHead | None:
    """The model's head, None on stages that have none."""
    return dict(model.named_children()).get(NAME)


@contextmanager
def without_value_head(models: list[R1Model]) -> Iterator[None]:
    """Take the heads out for a while: a checkpoint of the language model, which knows none, can be loaded then."""
    heads = [value_head(model) for model in models]
    for model, head in zip(models, heads, strict=True):
        if head is not None:
            delattr(model, NAME)
    try:
        yield
    finally:
        for model, head in zip(models, heads, strict=True):
            if head is not None:
                model.add_module(NAME, head)
