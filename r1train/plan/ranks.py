"""Parameters that one rank holds under a layout, as megatron-core distributes them."""

from dataclasses import dataclass

from r1train.config.layout import stage_letters
from r1train.config.schema import RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.plan import ranks_deepseek, ranks_dense


@dataclass(frozen=True, kw_only=True)
class RankParameters:
    """Elements on every rank of one pipeline stage. expert: the routed experts."""

    pp_rank: int
    letters: str
    dense: int
    expert: int

    @property
    def total(self) -> int:
        return self.dense + self.expert


def pp_rank_of(cfg: RunConfig, rank: int) -> int:
    """Pipeline stage of a global rank: megatron-core's order tp-cp-ep-dp-pp puts the stages outermost."""
    return rank // (cfg.parallel.world_size // cfg.parallel.pp)


def parameters_of_stages(cfg: RunConfig) -> list[RankParameters]:
    """One entry per pp_rank. With interleaving a pp_rank holds several stages; letters shows them joined by |."""
    stages = stage_letters(cfg.model, cfg.parallel)
    first_layer = [sum(stage.count("t") for stage in stages[:index]) for index in range(len(stages))]
    found = []
    for pp_rank in range(cfg.parallel.pp):
        mine = range(pp_rank, len(stages), cfg.parallel.pp)
        held = [_stage(cfg, stages[index], first_layer[index]) for index in mine]
        found.append(
            RankParameters(
                pp_rank=pp_rank,
                letters="|".join(stages[index] for index in mine),
                dense=sum(dense for dense, _ in held),
                expert=sum(expert for _, expert in held),
            )
        )
    return found


def _stage(cfg: RunConfig, letters: str, first_layer: int) -> tuple[int, int]:
    """(all but the routed experts, routed experts) of one stage on one rank."""
    model = cfg.model
    if not isinstance(model, ModelConfig):
        return ranks_dense.held(model, cfg, letters), 0
    unrouted = ranks_deepseek.unrouted(model, cfg, letters, first_layer)
    return unrouted, ranks_deepseek.routed(model, cfg, letters, first_layer)
