"""What `mode=plan` prints: counts, bytes per rank and FLOPs, as a table for people and as JSON for programs."""

import dataclasses
import itertools

from rich.console import Console
from rich.table import Table

from r1train.config.schema import GrpoStage, PretrainStage, RewardModelStage, RunConfig, SftStage
from r1train.plan.compute import flops_per_token
from r1train.plan.memory import rank_bytes
from r1train.plan.ranks import parameters_of_stages
from r1train.plan.shape import count_parameters

GIB = 2**30
NOTE = (
    "Not counted: activations, communication buffers, padding of buckets, the CUDA context; host memory, of which the "
    "average of the weights (optim.ema_decay) takes 6 bytes per parameter of every rank."
)


def plan_record(cfg: RunConfig) -> dict:
    """The whole plan as plain data; sizes in elements, bytes and FLOPs."""
    counts = count_parameters(cfg.model)
    length = cfg.model.max_position_embeddings
    if isinstance(cfg.stage, PretrainStage | SftStage | GrpoStage | RewardModelStage):
        length = cfg.stage.seq_length
    parallel = cfg.parallel
    stages = []
    for params in parameters_of_stages(cfg):
        used = rank_bytes(cfg, params)
        stages.append(
            {**dataclasses.asdict(params), "parameters": params.total}
            | {"bytes": {**dataclasses.asdict(used), "total": used.total}}
        )
    return {
        "name": cfg.name,
        "model": cfg.model.name,
        "parameters": {**dataclasses.asdict(counts), "total": counts.total},
        "flops_per_token": {
            "seq_length": length,
            "main": flops_per_token(cfg.model, seq_length=length, mtp=False),
            "with_mtp": flops_per_token(cfg.model, seq_length=length, mtp=True),
        },
        "layout": {"world_size": parallel.world_size, "dp": parallel.dp, "edp": parallel.edp}
        | {axis: vars(parallel)[axis] for axis in ("tp", "pp", "cp", "ep", "etp")},
        "ranks_per_stage": parallel.world_size // parallel.pp,
        "stages": stages,
        "not_counted": NOTE,
    }


def print_plan(record: dict, console: Console) -> None:
    """The record as tables; neighbouring pipeline stages with equal contents share a line."""
    parameters, flops = record["parameters"], record["flops_per_token"]
    counts = Table(title=f"{record['name']}: parameters of {record['model']}")
    counts.add_column("what")
    counts.add_column("elements", justify="right")
    for label, key in (
        ("attention of one layer", "attention"),
        ("dense layer", "dense_layer"),
        ("MoE layer", "moe_layer"),
        ("one expert", "expert"),
        ("embedding = head", "embedding"),
        ("main model", "main"),
        ("MTP blocks", "mtp"),
        ("main + MTP", "total"),
        ("active per token", "active"),
        ("active without embedding", "active_without_embedding"),
    ):
        if parameters[key]:  # a dense model has no MoE layers and no MTP
            counts.add_row(label, f"{parameters[key]:,}")
    console.print(counts)
    console.print(
        f"Training FLOPs per token at length {flops['seq_length']:,}, causal: "
        f"{_gigaflop(flops['main'])} main, {_gigaflop(flops['with_mtp'])} with MTP"
    )
    console.print(_rank_table(record))
    console.print(record["not_counted"])


def _rank_table(record: dict) -> Table:
    layout = ", ".join(f"{axis} {size}" for axis, size in record["layout"].items())
    table = Table(title=f"Each rank: {layout}")
    for name in ("pp_rank", "ranks", "holds"):
        table.add_column(name)
    for name in ("parameters", "weights", "gradients", "optimizer", "sum"):
        table.add_column(name, justify="right")
    for _, same in itertools.groupby(record["stages"], key=lambda stage: stage | {"pp_rank": 0}):
        stages = list(same)
        first, last = stages[0]["pp_rank"], stages[-1]["pp_rank"]
        per_stage, used = record["ranks_per_stage"], stages[0]["bytes"]
        table.add_row(
            _span(first, last),
            _span(first * per_stage, (last + 1) * per_stage - 1),
            stages[0]["letters"],
            f"{stages[0]['parameters']:,}",
            *(_size(used[part]) for part in ("weights", "gradients", "optimizer", "total")),
        )
    return table


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def _gigaflop(flops: float) -> str:
    return f"{flops / 1e9:.2f} GFLOP" if flops >= 1e8 else f"{flops / 1e6:.2f} MFLOP"
