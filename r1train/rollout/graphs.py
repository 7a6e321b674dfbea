"""Running a step that changes tensors in place: anew each time, or captured once as a CUDA graph and replayed."""

from collections.abc import Callable, Hashable
from typing import Protocol

import torch

# The first times compile kernels, tune them and take workspaces, which a capture must not do.
WARM_UP = 2


class Runner(Protocol):
    """Runs steps. A key says which computation on which shapes; the same key is always the same computation."""

    def bind(self, addresses: tuple[int, ...]) -> None:
        """The device addresses that steps read and write from now on."""

    def run(self, key: Hashable, step: Callable[[], None], count: int) -> None:
        """`step` so many times; it changes what lies at the addresses, and nothing else."""


class Plain:
    """Computes every step anew."""

    def bind(self, addresses: tuple[int, ...]) -> None:
        pass

    def run(self, key: Hashable, step: Callable[[], None], count: int) -> None:
        del key
        for _ in range(count):
            step()


class Graphs:
    """Replays a graph per key, captured when the key's step has run WARM_UP times.

    Graphs share one memory pool: each leaves its results at the bound addresses and nothing in the pool that another
    could overwrite.
    """

    def __init__(self) -> None:
        self._addresses: tuple[int, ...] = ()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._seen: dict[Hashable, int] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.captures = 0

    def bind(self, addresses: tuple[int, ...]) -> None:
        """A graph reads and writes where it did when it was captured: other addresses make all of them useless."""
        if addresses == self._addresses:
            return
        self._addresses = addresses
        if self._graphs:
            torch.cuda.synchronize()  # none of them may be running
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()
        self._seen.clear()

    def run(self, key: Hashable, step: Callable[[], None], count: int) -> None:
        warm_up = min(count, max(0, WARM_UP - self._seen.get(key, 0)))
        for _ in range(warm_up):
            step()
        self._seen[key] = self._seen.get(key, 0) + warm_up
        if count == warm_up:
            return
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._capture(step)
        for _ in range(count - warm_up):
            graph.replay()

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The step as a graph; nothing is computed. Other threads may use the GPU meanwhile (NCCL's watchdog does)."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        self.captures += 1
        return graph
