"""Multi-token prediction: megatron-core's layer with one mend, and its loss under context parallelism."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from megatron.core.models.gpt import gpt_model
from megatron.core.transformer.multi_token_prediction import (
    MTPLossAutoScaler,
    MTPLossLoggingHelper,
    MultiTokenPredictionLayer,
    roll_tensor,
)


class MtpLayer(MultiTokenPredictionLayer):
    """MultiTokenPredictionLayer that leaves the mask of padding as it is.

    megatron-core 0.19.2 rolls it by one token inside every packed sample like the tokens: the last token of a padding
    segment then counts in the router's statistics, and under sequence parallelism, where a rank holds its part of the
    mask but the bounds of whole samples, others as well.
    """

    def _get_embeddings(
        self, *args: object, padding_mask: torch.Tensor | None = None, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        tokens, positions, _, decoder_input, hidden = super()._get_embeddings(*args, **kwargs)
        return tokens, positions, padding_mask, decoder_input, hidden


def mtp_loss_of_whole_rows(  # noqa: PLR0913 - megatron-core's signature
    hidden_states: torch.Tensor,
    *,
    labels: torch.Tensor,
    loss_mask: torch.Tensor,
    output_layer: Callable,
    output_weight: torch.Tensor | None,
    runtime_gather_output: bool | None,
    is_training: bool,
    compute_language_model_loss: Callable,
    config: object,
    cp_group: torch.distributed.ProcessGroup,
    packed_seq_params: object | None,
    **_unused: object,
) -> torch.Tensor:
    """megatron-core's process_mtp_loss with loss per token, its counts those of the micro-batch on all cp ranks.

    The loss of depth k is a mean over the targets that remain after k shifts (V3 eq. 24), times the main head's count,
    by which the step divides. megatron-core 0.19.2 takes both counts from this rank's part of the rows: ranks whose
    parts have more targets would count less, and those without a main target not at all.
    hidden_states: [(1 + depths) s / cp, b, h], main head's first; returns the main head's, the loss attached to them.
    """
    main, *depths = torch.chunk(hidden_states, 1 + config.mtp_num_layers, dim=0)
    main_count = _count(loss_mask, cp_group)
    for depth, hidden in enumerate(depths):
        logits, _ = output_layer(hidden, weight=output_weight, runtime_gather_output=runtime_gather_output)
        labels, _ = roll_tensor(labels, cp_group=cp_group, packed_seq_params=packed_seq_params)
        loss_mask, _ = roll_tensor(loss_mask, cp_group=cp_group, packed_seq_params=packed_seq_params)
        scale = main_count / _count(loss_mask, cp_group).clamp(min=1) * config.mtp_loss_scaling_factor / len(depths)
        losses = loss_mask * compute_language_model_loss(labels, logits)
        main = MTPLossAutoScaler.apply(main, scale * losses)
        if is_training:
            targets = loss_mask.sum()
            mean = losses.detach().sum() / targets.clamp(min=1)
            MTPLossLoggingHelper.save_metrics_to_tracker(mean, torch.zeros_like(mean), targets, depth, len(depths))
    return main


def take_mtp_loss() -> tuple[torch.Tensor, torch.Tensor] | None:
    """(sum of the losses, number of targets) of this rank's last forward in training, over all depths; None without.

    Asked after every micro-batch, because megatron-core's tracker, which this empties, adds up means over targets.
    """
    tracker = MTPLossLoggingHelper.tracker
    if "loss_values" not in tracker:
        return None
    means, targets = tracker["loss_values"], tracker["total_values"]
    tracker.clear()
    return (means * targets).sum(), targets.sum()


def _count(loss_mask: torch.Tensor, cp_group: torch.distributed.ProcessGroup) -> torch.Tensor:
    count = loss_mask.sum()
    torch.distributed.all_reduce(count, group=cp_group)
    return count


@contextmanager
def counting_whole_rows(cp_group: torch.distributed.ProcessGroup) -> Iterator[None]:
    """Inside, megatron-core's GPTModel takes its MTP loss from mtp_loss_of_whole_rows where ranks share the rows."""
    original = gpt_model.process_mtp_loss
    if cp_group.size() > 1:
        gpt_model.process_mtp_loss = mtp_loss_of_whole_rows
    try:
        yield
    finally:
        gpt_model.process_mtp_loss = original
