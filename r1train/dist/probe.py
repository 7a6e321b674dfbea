"""Optional GPU packages: whether they can be used, and what takes their place where they cannot."""

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Of the round that tries DeepEP; the width is DeepSeek-V3's.
_ROUND_TOKENS, _ROUND_WIDTH = 64, 7168


@functools.cache
def apex_fusion() -> bool:
    """Whether apex's kernel that adds weight gradients into the fp32 buffer is there.

    megatron-core's own linear layers need it (the LM head); Transformer Engine's layers have one themselves. The
    package named apex on PyPI is another project, so the compiled module is looked for.
    """
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


@functools.cache
def deep_ep_problem() -> str | None:
    """Why DeepEP cannot be used, None where it can: it is imported, because a wrong NVSHMEM shows only then."""
    try:
        importlib.import_module("deep_ep")
    except (ImportError, OSError) as error:
        return str(error).splitlines()[0]
    return None


def usable_dispatcher(wanted: str) -> str:
    """The token dispatcher to run with: alltoall where flex is wanted and DeepEP cannot be used."""
    return "alltoall" if wanted == "flex" and flex_problem() is not None else wanted


def flex_problem() -> str | None:
    """Why the flex dispatcher cannot be used, None where it can.

    In a job on GPUs every rank gets the same answer, from a round of tokens through DeepEP's kernels; the first call is
    collective then. Elsewhere (plans, doctor) DeepEP is only imported.
    """
    import torch.distributed as dist  # noqa: PLC0415 - the doctor reads this module, and does not wait for torch

    if dist.is_initialized() and dist.get_backend() == "nccl":
        return _problem_of_the_job()
    return deep_ep_problem()


@functools.cache
def _problem_of_the_job() -> str | None:
    """The first rank's problem: with the import, and where all could import it, with a round. Collective."""
    from megatron.core import parallel_state  # noqa: PLC0415 - after select_device: it has to see the CPU stand-ins

    problem = _first_of_all_ranks(deep_ep_problem())
    if problem is not None:
        return problem
    return _first_of_all_ranks(round_problem(parallel_state.get_expert_tensor_and_model_parallel_group(), "cuda"))


def _first_of_all_ranks(problem: str | None) -> str | None:
    """Every rank gets the problem of the first rank that has one. Collective."""
    import torch.distributed as dist  # noqa: PLC0415 - as above

    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, problem)
    return next((f"rank {rank}: {line}" for rank, line in enumerate(found) if line is not None), None)


def round_problem(group: "ProcessGroup", device: str) -> str | None:
    """What goes wrong when tokens go to the group's ranks and back as megatron-core's flex dispatcher sends them.

    One expert per rank, token i of rank r to rank (r + i) modulo their number, so each comes back once and unchanged:
    bf16 [tokens, V3's width], so that training finds the buffer as large as it needs it. Collective over the group.
    """
    import torch  # noqa: PLC0415 - as above
    from megatron.core.transformer.moe import fused_a2a  # noqa: PLC0415 - as above

    ranks, rank = group.size(), group.rank()
    if ranks == 1:
        return "one rank holds all experts"
    numbers = torch.arange(_ROUND_TOKENS, device=device)
    tokens = (numbers + _ROUND_TOKENS * rank)[:, None].expand(-1, _ROUND_WIDTH).to(torch.bfloat16).contiguous()
    experts, weights = ((numbers + rank) % ranks)[:, None], torch.ones(_ROUND_TOKENS, 1, device=device)
    try:
        received, _, _, _, handle = fused_a2a.fused_dispatch(tokens, experts, weights, ranks, group)
        returned, _ = fused_a2a.fused_combine(received, group, handle)
        unchanged = torch.equal(returned, tokens)
    except (RuntimeError, AssertionError, TypeError, AttributeError, ValueError, OSError) as error:
        # DeepEP raises whatever its C++ or the driver does; megatron-core's functions are None without its parts.
        return f"a round of tokens failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None if unchanged else "a round of tokens came back changed"
