"""Optional GPU packages: whether they can be used, and what takes their place where they cannot."""

import functools
import importlib
import importlib.util


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
    return "alltoall" if wanted == "flex" and deep_ep_problem() is not None else wanted
