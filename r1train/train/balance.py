"""How evenly the experts are loaded, and their balance loss, over a whole step and all ranks, for the metrics.

megatron-core counts tokens per expert for the bias update and forgets them in finalize_model_grads, so the counts are
taken just before. One sum over all processes per step brings them together.
"""

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.transformer_config import TransformerConfig

from r1train.model.gpt import R1Model
from r1train.model.router import Router


@dataclass(frozen=True)
class BalanceReport:
    """One step's load. load: per MoE layer, in layer order and MTP last, the routed tokens of every expert.

    The numbers are of the layers that counted anything: in RL and reward models MTP does not run.
    sequence_loss: sum over layers of sum_i f_i P_i (V3 eq. 17-20, without its factor), a mean over micro-batches and
    their sequences; None where it is not trained on.
    """

    load: tuple[tuple[int, ...], ...]
    sequence_loss: float | None = None

    @property
    def counted(self) -> list[tuple[int, ...]]:
        """The layers that tokens were routed in."""
        return [layer for layer in self.load if any(layer)]

    def max_violation(self) -> list[float]:
        """MaxVio of every layer: largest load / mean load - 1 (arXiv 2408.15664 eq. 4); 0 is perfect balance."""
        return [max(layer) * len(layer) / sum(layer) - 1.0 for layer in self.counted]

    def dead_experts(self) -> int:
        """Experts of these layers that no token went to."""
        return sum(layer.count(0) for layer in self.counted)

    def gauges(self) -> dict[str, float | list]:
        """What metrics.jsonl shows, nothing where nothing was counted.

        expert_load: per layer, each expert's load over the mean, two decimals. sequence_loss: mean over layers, 1 when
        all experts are equally loaded.
        """
        violation = self.max_violation()
        if not violation:
            return {}
        shares = [[round(count * len(layer) / sum(layer), 2) for count in layer] for layer in self.counted]
        loss = {} if self.sequence_loss is None else {"balance/sequence_loss": self.sequence_loss / len(violation)}
        return {
            **loss,
            "balance/max_violation": max(violation),
            "balance/mean_violation": sum(violation) / len(violation),
            "balance/dead_experts": float(self.dead_experts()),
            "balance/max_violation_per_layer": [round(value, 4) for value in violation],
            "balance/expert_load": shares,
        }


def routers(modules: list[R1Model]) -> list[tuple[int, Router]]:
    """(row, router) of this rank's MoE layers; the rows count all MoE layers of the model, MTP's last."""
    config = modules[0].config
    if config.num_moe_experts is None:
        return []
    moe_layers = [number for number, is_moe in enumerate(config.moe_layer_freq, start=1) if is_moe]
    row_of = {number: row for row, number in enumerate(moe_layers)}
    found = []
    for module in modules:
        for layer in module.decoder.layers:
            if layer.layer_number in row_of:
                found.append((row_of[layer.layer_number], layer.mlp.router))
        if module.mtp_process:
            found += [
                (len(moe_layers) + depth, layer.mtp_model_layer.mlp.router)
                for depth, layer in enumerate(module.mtp.layers)
            ]
    return found


def rows(config: TransformerConfig) -> int:
    """MoE layers of the whole model, MTP blocks included."""
    return sum(config.moe_layer_freq) + (config.mtp_num_layers or 0)


def finalize_and_count(chunks: list[torch.nn.Module], *arguments: object, **options: object) -> None:
    """megatron-core's finalize_model_grads, once every router has set this step's load aside."""
    for _, router in routers([chunk.module for chunk in chunks]):
        router.keep_load()
    finalize_model_grads(chunks, *arguments, **options)


def step_balance(modules: list[R1Model], *, micro_batches: int) -> BalanceReport | None:
    """The last step's load and loss over all ranks, known to every rank; None without MoE layers. Collective.

    micro_batches: of each data-parallel rank in that step. Empties megatron-core's tracker of the loss.
    """
    config = modules[0].config
    if config.num_moe_experts is None:
        return None
    counts = torch.zeros(rows(config) * config.num_moe_experts + 1, device=torch.cuda.current_device())
    table, loss = counts[:-1].view(-1, config.num_moe_experts), counts[-1]
    for row, router in routers(modules):
        table[row] = router.step_load
    tracker = get_moe_metrics_tracker()
    if (recorded := tracker.metrics.get("seq_load_balancing_loss")) is not None:
        loss += recorded.values.sum()
    tracker.clear()
    # Every rank routes other tokens (tensor-parallel ranks too: they cut the sequence), every stage has other layers.
    torch.distributed.all_reduce(counts)
    *flat, total = counts.tolist()
    shares = parallel_state.get_data_parallel_world_size() * micro_batches
    starts = range(0, len(flat), config.num_moe_experts)
    return BalanceReport(
        tuple(tuple(int(count) for count in flat[start : start + config.num_moe_experts]) for start in starts),
        total / shares if config.moe_aux_loss_coeff > 0 else None,
    )
