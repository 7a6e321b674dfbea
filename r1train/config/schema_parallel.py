"""Layout over processes, and the machines they run on."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of each axis. Data parallelism is what remains: world_size / (tp * pp * cp).

    pp_layout: megatron-core's layout string (E embedding, t layer, m MTP, L loss, | next stage); None splits evenly.
    With pp x n stages every rank holds n chunks of the model and the schedule interleaves them (VPP).
    dispatcher: flex is DeepEP's; where that does not work (dist/probe.py), alltoall takes its place and a line says so.
    overlap_*: gradient reduction, gathering of weights, expert all-to-all, each hidden behind computation.
    delay_wgrad: with overlap_expert_all_to_all, weight gradients wait to fill its gaps.
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    pp_layout: str | None = None
    dispatcher: Literal["alltoall", "allgather", "flex"] = "alltoall"
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    overlap_expert_all_to_all: bool = False
    delay_wgrad: bool = False
    recompute_modules: tuple[str, ...] = ()

    @property
    def dp(self) -> int:
        return self.world_size // (self.tp * self.pp * self.cp)

    @property
    def edp(self) -> int:
        """Data-parallel size of the expert weights."""
        return self.world_size // (self.etp * self.pp * self.ep)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where it runs. `cuda` takes Transformer Engine and NCCL, `cpu` our own local modules and gloo."""

    name: str
    device: Literal["cpu", "cuda"]
    nodes: int
    processes_per_node: int
    threads_per_process: int
    timeout_minutes: int = 30
