"""MTP's loss on two context-parallel ranks against megatron-core's on whole rows: torchrun ... mtp_parts.py OUT

Rank r writes OUT/r.pt: by case, the gradients of its part of the hidden states and of the head, and of the whole rows.
"""

import sys
from pathlib import Path

import torch
from tiny import config

from r1train.dist.init import select_device

HIDDEN, VOCABULARY, LENGTH = 4, 11, 16
# Depth 1 rolls a target into a part that has no target of its own; the other cases have uneven parts.
MASKS = {
    "uneven": [[1.0] * 5 + [0.0] * 11, [0.0] * 3 + [1.0] * 13],
    "none_on_one_rank": [[0.0] * 4 + [1.0] * 8 + [0.0] * 4],
    "packed": [[1.0] * 6 + [0.0] * 2 + [1.0] + [0.0] * 7],
}
BOUNDS = {"packed": [0, 8, 16]}


def gradients(loss, places: torch.Tensor, mask: torch.Tensor, options: dict) -> tuple[torch.Tensor, ...]:
    """Of the MTP hidden states at these places and of the head's weight; the logged sums of losses and of targets."""
    from r1train.model.mtp import take_mtp_loss

    generator = torch.Generator().manual_seed(3)
    rows = len(mask)
    hidden = torch.randn(LENGTH, rows, HIDDEN, generator=generator)[places].requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=generator)[:, places]

    def head(states, *, weight, runtime_gather_output):
        return states @ weight.T, None

    def cross_entropy(labels, logits):
        logits = logits.transpose(0, 1).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none").view(labels.shape)

    out = loss(
        torch.cat([torch.zeros_like(hidden), hidden]),
        labels=labels,
        loss_mask=mask[:, places],
        output_layer=head,
        output_weight=weight,
        runtime_gather_output=None,
        is_training=True,
        compute_language_model_loss=cross_entropy,
        **options,
    )
    out.sum().backward()
    return hidden.grad, weight.grad, *take_mtp_loss()


def main(out: Path) -> None:
    select_device(config("single").cluster)
    torch.distributed.init_process_group("gloo")
    from types import SimpleNamespace

    from megatron.core import parallel_state
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.multi_token_prediction import process_mtp_loss

    from r1train.model.mtp import mtp_loss_of_whole_rows
    from r1train.train.context import cut
    from r1train.train.micro_batch import MicroBatch

    parallel_state.initialize_model_parallel()
    rank = torch.distributed.get_rank()
    mtp_config = SimpleNamespace(
        mtp_num_layers=1,
        mtp_loss_scaling_factor=0.3,
        calculate_per_token_loss=True,
        mtp_detach_heads=False,
    )
    results = {}
    for case, rows in MASKS.items():
        mask = torch.tensor(rows)
        bounds = torch.tensor(BOUNDS[case], dtype=torch.int32) if case in BOUNDS else None
        tokens = torch.zeros(mask.shape, dtype=torch.int64)
        shared = cut(MicroBatch(tokens, tokens, tokens, mask, bounds, {}), cp_size=2, tp_size=1)
        packed = bounds is not None and PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
        options = {"config": mtp_config, "packed_seq_params": packed or None}
        whole = gradients(process_mtp_loss, torch.arange(LENGTH), mask, {**options, "cp_group": None})
        here = {"cp_group": torch.distributed.group.WORLD, **options}
        results[case] = {
            "places": shared.places[rank],
            "whole": whole,
            "ours": gradients(mtp_loss_of_whole_rows, shared.places[rank], mask, here),
            "theirs": gradients(process_mtp_loss, shared.places[rank], mask, here),
        }
    torch.save(results, out / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
