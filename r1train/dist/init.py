"""Processes and process groups: the only reader of RANK, WORLD_SIZE and LOCAL_RANK."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from r1train.config.layout import embedding_stages, virtual_stages
from r1train.config.schema_parallel import ClusterConfig, ParallelConfig
from r1train.dist import cpu
from r1train.errors import EnvironmentProblem

CUDA_QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"


@dataclass(frozen=True)
class Device:
    """Where this process computes. type: cpu or cuda; torch_device: the device of its tensors."""

    type: str
    torch_device: torch.device

    @property
    def backend(self) -> str:
        return "gloo" if self.type == "cpu" else "nccl"


def select_device(cluster: ClusterConfig) -> Device:
    """Take this process's device and prepare megatron-core for it; call before anything imports megatron.core.

    Raises EnvironmentProblem when the config asks for CUDA and this process sees no GPU for its local rank.
    """
    if cluster.device == "cpu":
        torch.set_num_threads(cluster.threads_per_process)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        cpu.install()
        return Device("cpu", torch.device("cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.device_count() <= local_rank:
        raise EnvironmentProblem(
            f"cluster.device is cuda, but local rank {local_rank} finds {torch.cuda.device_count()} GPUs. "
            "Fix: run on a machine with a GPU per process, or choose cluster=local_cpu"
        )
    torch.cuda.set_device(local_rank)
    # Transformer Engine's permutation kernels are tuned at the first step: 13 s in every process, and another choice
    # may sum in another order. Kept on disk, the choice is made once.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    return Device("cuda", torch.device("cuda", local_rank))


def set_cuda_queues(cluster: ClusterConfig, parallel: ParallelConfig) -> None:
    """How many hardware queues CUDA gives this process, by its layout; call before anything touches a GPU.

    One queue makes tensor and context parallelism's communication start before the GEMM that hides it
    (megatron-core's layers.py); the overlap of the experts' all-to-all needs many (32 in NVIDIA's recipe of it), and
    comes first where a layout has both. A value in the environment wins; other layouts keep CUDA's own (8).
    """
    if cluster.device == "cpu":
        return
    if parallel.overlap_expert_all_to_all:
        os.environ.setdefault(CUDA_QUEUES, "32")
    elif parallel.tp > 1 or parallel.cp > 1:
        os.environ.setdefault(CUDA_QUEUES, "1")


def init_processes(device: Device, parallel: ParallelConfig, cluster: ClusterConfig) -> None:
    """Join the job's processes and make megatron-core's groups. A process without torchrun is a world of one.

    Raises EnvironmentProblem when the number of processes is not the config's world_size.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != parallel.world_size:
        raise EnvironmentProblem(
            f"{world_size} processes were started, but parallel.world_size is {parallel.world_size}. "
            f"Fix: torchrun --nproc-per-node {cluster.processes_per_node} --nnodes {cluster.nodes}, or set "
            f"parallel.world_size={world_size}"
        )
    timeout = timedelta(minutes=cluster.timeout_minutes)
    if "RANK" in os.environ:
        dist.init_process_group(device.backend, timeout=timeout)
    else:
        dist.init_process_group(device.backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    make_groups(device, parallel, cluster)


def make_groups(device: Device, parallel: ParallelConfig, cluster: ClusterConfig) -> None:
    """megatron-core's groups of this layout over processes that have joined; any earlier layout has been destroyed."""
    from megatron.core import parallel_state  # noqa: PLC0415 - after select_device: it has to see the CPU stand-ins

    chunks = virtual_stages(parallel)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        get_embedding_ranks=lambda ranks: [ranks[stage] for stage in embedding_stages(parallel)],
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        distributed_timeout_minutes=cluster.timeout_minutes,
        create_gloo_process_groups=device.type == "cuda",
    )


def close_processes() -> None:
    """Leave the job's process groups."""
    from megatron.core import parallel_state  # noqa: PLC0415 - as above

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def export_ranks() -> None:
    """Give a process that no launcher started the variables of one, for libraries that read them (vLLM)."""
    os.environ.setdefault("RANK", str(dist.get_rank()))
    os.environ.setdefault("WORLD_SIZE", str(dist.get_world_size()))
    os.environ.setdefault("LOCAL_RANK", "0")


def launch_rank() -> int:
    """This process's place among the job's processes, known before they have joined; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def is_rank0() -> bool:
    """Whether this process writes what a run writes once."""
    return launch_rank() == 0
