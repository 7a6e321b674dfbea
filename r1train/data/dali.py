"""The loader on NVIDIA DALI: an external source whose batches DALI copies to the GPU through pinned memory."""

import importlib
from types import ModuleType

import torch

from r1train.data.loader import Loaded, Reader, TorchLoader, WindowLoader
from r1train.errors import EnvironmentProblem

_INPUT = "windows"


def open_loader(kind: str, reader: Reader, device: torch.device, *, ahead: int = 2) -> WindowLoader:
    """The loader of data.loader: `torch` or `dali`. Raises EnvironmentProblem where DALI is asked for but missing."""
    return {"torch": TorchLoader, "dali": DaliLoader}[kind](reader, device, ahead=ahead)


def _dali(module: str) -> ModuleType:
    """A module of DALI, which is optional and takes seconds to import, so it is imported where it is used."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"data.loader = dali, but nvidia-dali cannot be imported ({error})"
        raise EnvironmentProblem(f"{what}. Fix: pip install 'r1train[gpu]', or data.loader=torch") from None


class DaliLoader(WindowLoader):
    """One DALI pipeline: host buffer -> pinned buffer -> GPU. Without a GPU it ends at the host buffer."""

    def __init__(self, reader: Reader, device: torch.device, *, ahead: int):
        super().__init__(reader, device, ahead=ahead)
        self._dali, self._fn = _dali("nvidia.dali"), _dali("nvidia.dali.fn")
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._largest = 0

    def load(self, windows: torch.Tensor) -> Loaded:
        if len(windows) > self._largest:
            self._build(len(windows))
        self._pipe.feed_input(_INPUT, windows.numpy())
        (output,) = self._pipe.run()
        if self._stream is None:
            return Loaded(torch.from_numpy(output.as_array().copy()), None)
        with torch.cuda.stream(self._stream):
            # DALI uses its buffer again in the next run.
            copy = torch.from_dlpack(output.as_tensor()).clone()
            ready = torch.cuda.Event()
            ready.record(self._stream)
        ready.synchronize()
        return Loaded(copy, ready)

    def _build(self, largest: int) -> None:
        """A pipeline for batches of up to `largest` windows; a larger batch needs a new one."""
        device_id = (self._device.index or 0) if self._on_gpu else None
        self._pipe = self._dali.Pipeline(batch_size=largest, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
        with self._pipe:
            windows = self._fn.external_source(name=_INPUT, dtype=self._dali.types.INT64, ndim=1)
            self._pipe.set_outputs(windows.gpu() if self._on_gpu else windows)
        self._pipe.build()
        self._largest = largest
