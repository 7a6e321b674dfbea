"""Exponential moving average of the weights in host memory (V3 report section 3.2.3), updated after every step.

On CUDA the weights leave the GPU on a stream of their own into pinned memory, and a thread averages them while the next
step computes; the optimizer waits for the copy, not for the average.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from r1train.config.schema import RunConfig
from r1train.dist.init import Device
from r1train.model.build import build_chunks
from r1train.model.gpt import R1Model


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, per parameter, in fp32, on the host.

    chunks: models on the host whose parameters are the average, so that it is saved and loaded like weights. Buffers
    (the experts' biases) are not averaged: they follow the model.
    """

    def __init__(self, chunks: list[R1Model], decay: float, device: Device):
        self.chunks = chunks
        self._decay = decay
        # What checkpoints keep. Other buffers are caches, like the rotary kernel's, as long as the last sequence.
        self._kept_buffers = [chunk.state_dict().keys() for chunk in chunks]
        self._copied: torch.cuda.Event | None = None
        self._pending: Future[None] | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream()
            self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ema")
            self._staging: list[torch.Tensor] = []

    @torch.no_grad()
    def start_from(self, modules: list[R1Model]) -> None:
        """Set the average to these weights."""
        self.wait()
        for mine, theirs in self._pairs(modules):
            mine.copy_(theirs)
        self._follow_buffers(modules)

    @torch.no_grad()
    def update(self, modules: list[R1Model]) -> None:
        """Take one step's weights into the average; on CUDA it returns before that is done."""
        self.wait()
        pairs = self._pairs(modules)
        self._follow_buffers(modules)
        if not pairs or pairs[0][1].device.type == "cpu":
            _average([mine for mine, _ in pairs], [theirs for _, theirs in pairs], self._decay)
            return
        if not self._staging:
            self._staging = [torch.empty_like(theirs, device="cpu", pin_memory=True) for _, theirs in pairs]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for buffer, (_, theirs) in zip(self._staging, pairs, strict=True):
                buffer.copy_(theirs, non_blocking=True)
            self._copied = self._stream.record_event()
        self._pending = self._worker.submit(self._after_copy, self._copied, [mine for mine, _ in pairs])

    def before_weights_change(self) -> None:
        """Make the GPU finish copying the last step's weights before the optimizer overwrites them."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    def wait(self) -> None:
        """Until the last update is in the average; raises what went wrong in it."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _after_copy(self, copied: torch.cuda.Event, averages: list[torch.Tensor]) -> None:
        copied.synchronize()
        with torch.no_grad():
            _average(averages, self._staging, self._decay)

    def _pairs(self, modules: list[R1Model]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (mine, theirs)
            for chunk, module in zip(self.chunks, modules, strict=True)
            for mine, theirs in zip(chunk.parameters(), module.parameters(), strict=True)
        ]

    def _follow_buffers(self, modules: list[R1Model]) -> None:
        for chunk, module, kept in zip(self.chunks, modules, self._kept_buffers, strict=True):
            theirs = dict(module.named_buffers())
            for name, mine in chunk.named_buffers():
                if name in kept:
                    mine.copy_(theirs[name])


def _average(averages: list[torch.Tensor], weights: list[torch.Tensor], decay: float) -> None:
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight.float(), 1.0 - decay)


def build_average(cfg: RunConfig, device: Device) -> WeightAverage | None:
    """The average at the initial weights, None where optim.ema_decay is null."""
    if cfg.optim.ema_decay is None:
        return None
    chunks = [chunk.to(device="cpu", dtype=torch.float32) for chunk in build_chunks(cfg, device)]
    return WeightAverage(chunks, cfg.optim.ema_decay, device)
