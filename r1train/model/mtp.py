"""The multi-token-prediction layer: megatron-core's, with one mend."""

import torch
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer


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
