"""Training state in host memory while something else needs the device: master weights, moments, gradient buffers.

megatron-core's own MegatronOptimizer.offload_to_cpu (0.19.2) replaces `data` of whatever the optimizer steps on, which
in fp32 and with the precision-aware optimizer are views of the weights: they would no longer follow. So what moves here
are storages, and only those that hold no weight; gradient buffers are megatron-core's, which frees and zeroes them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from r1train.train.setup import Trainer


class TrainingState:
    """What the optimizer needs between steps and generation does not. Weights stay where they are.

    Host memory is pinned on CUDA and kept for the next time. On CPU the same moves go from memory to memory.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._host: list[torch.Tensor] = []

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Nothing of it is on the device inside, all of it is there again afterwards, bit for bit; gradients are zero.

        After an error inside nothing comes back: the process ends.
        """
        storages = self._storages()
        for place, storage in enumerate(storages):
            self._buffer(place, storage.nbytes()).copy_(_bytes(storage), non_blocking=True)
        torch.cuda.synchronize()
        sizes = [storage.nbytes() for storage in storages]
        for storage in storages:
            storage.resize_(0)
        self._move_gradients(to_host=True)
        yield
        self._move_gradients(to_host=False)
        for storage, buffer, size in zip(storages, self._host, sizes, strict=False):
            storage.resize_(size)
            _bytes(storage).copy_(buffer, non_blocking=True)

    def _storages(self) -> list[torch.UntypedStorage]:
        """Masters before moments, which appear with the first step, so that a master's host memory stays its own."""
        parts = [part.optimizer for part in self._trainer.optimizer.chained_optimizers]
        masters = [one for part in parts for group in part.param_groups for one in group["params"]]
        moments = [value for part in parts for state in part.state.values() for value in state.values()]
        weights = {one.untyped_storage().data_ptr() for module in self._trainer.modules for one in module.parameters()}
        found: dict[int, torch.UntypedStorage] = {}
        for tensor in [*masters, *moments]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._trainer.device.type:
                storage = tensor.untyped_storage()
                if storage.nbytes() > 0 and storage.data_ptr() not in weights:
                    found[storage.data_ptr()] = storage
        return list(found.values())

    def _buffer(self, place: int, size: int) -> torch.Tensor:
        """The host memory of the storage at this place, [size] uint8."""
        if place == len(self._host) or len(self._host[place]) != size:
            pin = self._trainer.device.type == "cuda"
            self._host[place : place + 1] = [torch.empty(size, dtype=torch.uint8, pin_memory=pin)]
        return self._host[place]

    def _move_gradients(self, *, to_host: bool) -> None:
        """Gradients of the last step are of no use: their memory is freed, and zeros when it is back."""
        with warnings.catch_warnings():
            # It still uses torch's typed storages, which say that they are deprecated.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            for chunk in self._trainer.chunks:
                if to_host:
                    chunk.offload_grad_buffers()
                else:
                    chunk.restore_grad_buffers()


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
