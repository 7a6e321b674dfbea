"""Windows of running text on the training device, read and copied ahead of the step that needs them.

Two loaders behind one interface, LoaderKind: TorchLoader here, DaliLoader in data/dali.py. Both give PretrainSource's
batches bit for bit and have no state of their own: where to go on is the number of consumed samples.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from r1train.data.pretrain import PretrainSource


@dataclass(frozen=True)
class Request:
    """This rank's share of the samples [consumed, consumed + count)."""

    consumed: int
    count: int

    @property
    def following(self) -> "Request":
        """What the next step asks for, unless the batch size changes."""
        return Request(self.consumed + self.count, self.count)


@dataclass(frozen=True)
class Reader:
    """A source and the part of every batch that this rank reads."""

    source: PretrainSource
    dp_rank: int
    dp_size: int

    def read(self, request: Request) -> torch.Tensor:
        """int64 [count / dp_size, S + 1] in host memory."""
        return self.source.batch(request.consumed, request.count, dp_rank=self.dp_rank, dp_size=self.dp_size)


@dataclass(frozen=True)
class Loaded:
    """windows: int64 on the device; ready: the CUDA event after their copy, None on CPU."""

    windows: torch.Tensor
    ready: torch.cuda.Event | None


class WindowLoader(ABC):
    """Reads ahead in one thread of its own. Wrong guesses (a growing batch) only cost the time of a read.

    waited_s: seconds that batch() was waiting for data, in all.
    """

    def __init__(self, reader: Reader, device: torch.device, *, ahead: int):
        """ahead: batches that are ready or on their way while a step runs."""
        self.waited_s = 0.0
        self._reader, self._device, self._ahead = reader, device, ahead
        self._queue: deque[tuple[Request, Future[Loaded]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")

    @abstractmethod
    def load(self, windows: torch.Tensor) -> Loaded:
        """Begin the copy to the device; called in the loader's thread."""

    def batch(self, consumed: int, count: int) -> torch.Tensor:
        """This rank's share of samples [consumed, consumed + count): int64 [count / dp_size, S + 1] on the device."""
        request, started = Request(consumed, count), time.perf_counter()
        if self._queue and self._queue[0][0] != request:
            self._forget()
        if not self._queue:
            self._submit(request)
        _, future = self._queue.popleft()
        while len(self._queue) < self._ahead:
            last = self._queue[-1][0] if self._queue else request
            self._submit(last.following)
        loaded = future.result()
        self.waited_s += time.perf_counter() - started
        if loaded.ready is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(loaded.ready)
            # Made on another stream: the allocator must not reuse it before this stream is done with it.
            loaded.windows.record_stream(stream)
        return loaded.windows

    def close(self) -> None:
        """Stop reading ahead."""
        self._forget()
        self._thread.shutdown(wait=True)

    def __enter__(self) -> "WindowLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, request: Request) -> None:
        self._queue.append((request, self._thread.submit(self._read_and_load, request)))

    def _read_and_load(self, request: Request) -> Loaded:
        return self.load(self._reader.read(request))

    def _forget(self) -> None:
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()


class TorchLoader(WindowLoader):
    """Pinned memory and a copy on a stream of its own."""

    def __init__(self, reader: Reader, device: torch.device, *, ahead: int):
        super().__init__(reader, device, ahead=ahead)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load(self, windows: torch.Tensor) -> Loaded:
        if self._stream is None:
            return Loaded(windows, None)
        with torch.cuda.stream(self._stream):
            copy = windows.pin_memory().to(self._device, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return Loaded(copy, ready)
