"""Which ranks share an engine with its own weights, which engines have the same prompts, and what they tell each other.

vLLM takes consecutive ranks of the job for its tensor parallelism, as it is launched with them (its parallel_state.py,
"ExternalDP x DP x PP x TP"). Without tensor and context parallelism of the trainer, consecutive ranks are data-parallel
ranks of one pipeline stage (dist/init.py), so an engine of n ranks answers the prompts of n data-parallel ranks. Stages
of one replica have the same prompts; each stage's engine draws its part of them, and all stages get all samples: what
one engine drew cannot differ between them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from megatron.core import parallel_state
from torch.distributed import ProcessGroup

from r1train.dist.comm import gathered
from r1train.errors import R1TrainError
from r1train.rollout.live import Job


class EnginesParted(R1TrainError):
    """The ranks of one engine drew different tokens, so what they computed together was of neither's."""

    exit_code = 1


@dataclass(frozen=True)
class EngineJob:
    """What an engine is asked. owner: which of its ranks has the prompt; number: of the job among that rank's."""

    owner: int
    number: int
    job: Job


@dataclass(frozen=True, eq=False)
class Answer:
    """What an engine drew. tokens int64 [R], logprobs float32 [R]; routes [computed tokens, all layers, k] or None."""

    owner: int
    number: int
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    routes: npt.NDArray[np.integer] | None


class EngineRanks:
    """This rank's place. number: of its engine among all of the job; place: its place in that engine."""

    def __init__(self, engine_size: int):
        """engine_size: ranks of an engine, which divide a pipeline stage. Collective over the job."""
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.pp_rank = parallel_state.get_pipeline_model_parallel_rank()
        self.pp_size = parallel_state.get_pipeline_model_parallel_world_size()
        dp_size = world_size // self.pp_size
        assert rank == self.pp_rank * dp_size + parallel_state.get_data_parallel_rank(), (rank, dp_size)
        assert dp_size % engine_size == 0, (dp_size, engine_size)
        self.engine_size, (self.number, self.place) = engine_size, divmod(rank, engine_size)
        self._engine = _group_of([list(range(at, at + engine_size)) for at in range(0, world_size, engine_size)])
        self._replica = _group_of([list(range(dp_rank, world_size, dp_size)) for dp_rank in range(dp_size)])

    def of_engine(self, value: Any) -> list[Any]:
        """What each rank of the engine brings, in their order. Collective over the engine."""
        return [value] if self._engine is None else gathered(value, self._engine)

    def of_replica(self, value: Any) -> list[Any]:
        """What this data-parallel rank brings on each pipeline stage, in their order. Collective over the stages."""
        return [value] if self._replica is None else gathered(value, self._replica)

    def asked(self, jobs: list[Job]) -> list[EngineJob]:
        """What this stage's engine draws of the jobs of its ranks, the same on each of them. Collective.

        Stages get consecutive parts, so that most samples of a prompt come from one engine, which reads it once.
        """
        parts = self.of_engine(jobs)
        together = [
            EngineJob(owner, number, job) for owner, part in enumerate(parts) for number, job in enumerate(part)
        ]
        first, end = (len(together) * pp_rank // self.pp_size for pp_rank in (self.pp_rank, self.pp_rank + 1))
        return together[first:end]


def check_agreed(drawn: list[str]) -> None:
    """Raise EnginesParted unless every rank of the engine drew the same; drawn: a digest of each rank's tokens."""
    if len(set(drawn)) > 1:
        what = f"the {len(drawn)} ranks of an engine drew different tokens for the same requests"
        fix = "report this; rollout.engine_tp=1 with stale=keep until then"
        raise EnginesParted(f"{what}, so its samples cannot be used. Fix: {fix}")


def _group_of(ranks: list[list[int]]) -> ProcessGroup | None:
    """This rank's among these groups of all ranks, on the hosts; None where it would be alone. Collective."""
    if len(ranks[0]) == 1:
        return None
    # Not NCCL: an engine may have work under way on the device when ranks ask each other.
    mine, _ = torch.distributed.new_subgroups_by_enumeration(ranks, backend="gloo")
    return mine
