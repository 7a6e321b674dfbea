"""CPU stand-ins: let megatron-core 0.19.2, written for CUDA, run unchanged on CPU tensors and gloo.

`install()` replaces names, not kernels: every torch.cuda query that megatron-core makes is answered for the CPU, a
literal device="cuda" means the CPU, and two functions whose CUDA-only test decides a type are replaced. What else the
project replaces in megatron-core, on every device: modules of our own (model/norm.py, model/attention.py), the loss of
MTP blocks (model/mtp.py), the LM head's fusion without apex (model/build.py) and the queue of a checkpoint's
writers (train/checkpoint.py).
"""

import contextlib
import functools
import importlib.metadata
import logging
import sys

import torch

from r1train.errors import EnvironmentProblem

MEGATRON_VERSION = "0.19.2"
CPU = torch.device("cpu")
# Packages that megatron-core prefers where they are installed, and that need a GPU to be imported or to compute.
GPU_PACKAGES = ("transformer_engine", "transformer_engine_torch", "apex", "amp_C")
# Factories that megatron-core calls with a literal device="cuda".
_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "empty_like", "zeros_like", "ones_like")


def check_megatron_version() -> None:
    """Raise EnvironmentProblem unless megatron-core is exactly the version these stand-ins were written for."""
    found = importlib.metadata.version("megatron-core")
    if found != MEGATRON_VERSION:
        raise EnvironmentProblem(
            f"megatron-core {found} is installed, but the CPU stand-ins (r1train/dist/cpu.py) fit {MEGATRON_VERSION} "
            f"only. Fix: pip install megatron-core=={MEGATRON_VERSION}, or revise and re-test dist/cpu.py for {found}"
        )


def _is_cuda(device: object) -> bool:
    """Whether a device argument names a CUDA device (an int is a CUDA index, as torch reads it)."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


class _Stream:
    """A stream or event on a device that runs everything in order: every wait is already over."""

    def __init__(self, *_args, **_kwargs):
        self.device = CPU

    def wait_stream(self, _stream):
        pass

    def wait_event(self, _event):
        pass

    def synchronize(self):
        pass

    def record_event(self, _event=None):
        return _Stream()

    def record(self, _stream=None):
        pass

    def wait(self, _stream=None):
        pass

    def query(self):
        return True


def _cpu_factory(make):
    @functools.wraps(make)
    def wrapped(*args, **kwargs):
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        return make(*args, **kwargs)

    return wrapped


def _patch_torch_cuda() -> None:
    stream = _Stream()
    answers = {
        "current_device": lambda: CPU,
        "set_device": lambda _device: None,
        "synchronize": lambda _device=None: None,
        "current_stream": lambda _device=None: stream,
        "default_stream": lambda _device=None: stream,
        "stream": lambda _stream: contextlib.nullcontext(),
        "Stream": _Stream,
        "Event": _Stream,
        "get_rng_state": lambda _device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _device=None: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "empty_cache": lambda: None,
        "device_count": lambda: 1,
        "get_device_capability": lambda _device=None: (9, 0),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.nvtx.range_push = lambda _message: None
    torch.cuda.nvtx.range_pop = lambda: None


def _patch_tensor_methods() -> None:
    tensor_type, tensor_to = torch.Tensor.type, torch.Tensor.to

    def type_of(self, dtype=None, **kwargs):
        # The distributed optimizer sorts parameters by the name "torch.cuda.FloatTensor".
        if dtype is None:
            return tensor_type(self).replace("torch.", "torch.cuda.")
        return tensor_type(self, dtype, **kwargs)

    def to(self, *args, **kwargs):
        if args and not isinstance(args[0], int) and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        return tensor_to(self, *args, **kwargs)

    torch.Tensor.type = type_of
    torch.Tensor.to = to
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self
    torch.nn.Module.cuda = lambda self, _device=None: self
    for name in _FACTORIES:
        setattr(torch, name, _cpu_factory(getattr(torch, name)))


def _hide_gpu_packages() -> None:
    """Importing them fails from now on as if they were not installed, which megatron-core is prepared for.

    With Transformer Engine visible it would take that optimizer and those layers, on CPU tensors; and where the CUDA
    libraries are missing, Transformer Engine's import raises errors that are no ImportError.
    """
    loaded = [name for name in sys.modules if name.partition(".")[0] in GPU_PACKAGES]
    for name in {*GPU_PACKAGES, *loaded}:
        sys.modules[name] = None  # how the import system is told that there is no such module


def _uncompiled(function=None, **_options):
    """torch.compile as a decorator, with or without options, that leaves the function as it is."""
    return function if function is not None else lambda later: later


def _split_sizes_as_numpy(tensor, as_numpy=False, record_stream=False):
    """The alltoall dispatcher wants its split sizes as numpy; the original converts CUDA tensors only."""
    del record_stream
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _patch_packed_rotary() -> None:
    """Rotate packed sequences in one call; the original loops over them, a third of a step with short sequences."""
    from megatron.core.models.common.embeddings import rope_utils  # noqa: PLC0415 - after the patches

    def rotate(  # noqa: PLR0913 - megatron-core's signature
        t, cu_seqlens, freqs, rotary_interleaved=False, mla_rotary_interleaved=False, mscale=1.0, cp_group=None
    ):
        assert cp_group.size() == 1, "context parallelism runs on CUDA only"
        lengths = cu_seqlens.diff()
        positions = torch.arange(t.shape[0]) - cu_seqlens[:-1].repeat_interleave(lengths)
        return rope_utils._apply_rotary_pos_emb_bshd(
            t.unsqueeze(1),
            freqs[positions],
            rotary_interleaved=rotary_interleaved,
            mla_rotary_interleaved=mla_rotary_interleaved,
            mscale=mscale,
        ).squeeze(1)

    rope_utils._apply_rotary_pos_emb_thd = rotate


def _patch_optimizer_loading() -> None:
    """torch's AdamW keeps 'step' as a tensor per parameter; the reshardable format carries it in the groups instead."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # noqa: PLC0415 - after the patches

    load_one = DistributedOptimizer._set_main_param_and_optimizer_states

    def load_without_step(self, model_param, tensors):
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        step = state.pop("step")
        load_one(self, model_param, tensors)
        state["step"] = step.clone()  # the loader gives all parameters one tensor, and AdamW counts in place

    DistributedOptimizer._set_main_param_and_optimizer_states = load_without_step


@functools.cache
def install() -> None:
    """Make megatron-core run on CPU in this process; calling again does nothing.

    Must come before the first import of megatron.core, whose modules read torch.cuda and torch.compile when imported.
    Raises EnvironmentProblem for another version of megatron-core.
    """
    assert "megatron.core" not in sys.modules, "dist.cpu.install() has to come before the first import of megatron.core"
    check_megatron_version()
    # megatron-core compiles small functions for fusion on a GPU; on a CPU that costs half a minute and gains nothing.
    torch.compile = _uncompiled
    # It warns on every start that there is no CUDA runtime.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    _hide_gpu_packages()
    _patch_torch_cuda()
    _patch_tensor_methods()
    # Imported after the patches: these modules read torch.cuda and torch.compile when they are imported.
    from megatron.core.tensor_parallel import random  # noqa: PLC0415
    from megatron.core.transformer.moe import token_dispatcher  # noqa: PLC0415

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    token_dispatcher.maybe_move_tensor_to_cpu = _split_sizes_as_numpy
    _patch_optimizer_loading()
    _patch_packed_rotary()
