"""How fast the loaders read windows onto the device, and how long a training step would wait for them.

python tools/bench_data.py --corpus data/corpus/text --seq-length 4096 --batch-size 64 --step-s 0.5 --loaders torch dali
"""

import argparse
import hashlib
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from r1train.data.dali import open_loader
from r1train.data.fit import ensure_fit
from r1train.data.loader import Reader, WindowLoader
from r1train.data.pretrain import PretrainSource
from r1train.errors import exit_code

PERCENT = 100.0


@dataclass(frozen=True)
class Timing:
    """seconds: of each measured batch, without a consumer; waited: share of the time that a consumer stood still.

    digest: of the first batch, the same for every loader.
    """

    seconds: list[float]
    waited: float
    digest: str

    def row(self, name: str, tokens: int) -> str:
        median = statistics.median(self.seconds)
        low, high = statistics.quantiles(self.seconds, n=10)[::8]
        rates = f"{tokens / median:14,.0f} ({tokens / high:,.0f} to {tokens / low:,.0f})"
        return f"{name:6} {rates} tokens/s   waits {PERCENT * self.waited:.2f} % of the time   sha256 {self.digest}"


def measure(loader: WindowLoader, *, batch_size: int, batches: int, warm_up: int, step_s: float) -> Timing:
    """First flat out, then with a consumer that takes step_s for each batch; warm-up batches are not counted."""
    position, seconds, digest = 0, [], ""
    for _ in range(warm_up + batches):
        started = time.perf_counter()
        windows = loader.batch(position, batch_size)
        _finish(windows)
        seconds.append(time.perf_counter() - started)
        position += batch_size
        digest = digest or hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest()[:12]
    for number in range(warm_up + batches):
        if number == warm_up:
            loader.waited_s, started = 0.0, time.perf_counter()
        _finish(loader.batch(position, batch_size))
        time.sleep(step_s)
        position += batch_size
    return Timing(seconds[warm_up:], loader.waited_s / (time.perf_counter() - started), digest)


def _finish(windows: torch.Tensor) -> None:
    """The copy is part of what is measured."""
    if windows.is_cuda:
        torch.cuda.synchronize()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="prefixes of .bin/.idx in one folder")
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--packing", choices=("concatenate", "best_fit"), default="concatenate")
    parser.add_argument("--batch-size", type=int, default=64, help="windows per step on this device")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--step-s", type=float, default=0.1, help="time that the consumer's step takes")
    parser.add_argument("--ahead", type=int, default=2, help="batches read ahead")
    parser.add_argument("--loaders", nargs="+", choices=("torch", "dali"), default=["torch"])
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    tokens = args.batch_size * args.seq_length
    print(f"{device}, {args.batch_size} windows of {args.seq_length}; median (10 % to 90 %) of {args.batches} batches")
    if args.packing == "best_fit":
        for prefix in args.corpus:
            ensure_fit(prefix, args.seq_length)
    weights = {prefix.name: 1.0 for prefix in args.corpus}
    source = PretrainSource(args.corpus[0].parent, weights, seq_length=args.seq_length, seed=0, packing=args.packing)
    for kind in args.loaders:
        with open_loader(kind, Reader(source, 0, 1), device, ahead=args.ahead) as loader:
            timing = measure(
                loader,
                batch_size=args.batch_size,
                batches=args.batches,
                warm_up=args.warm_up,
                step_s=args.step_s,
            )
        print(timing.row(kind, tokens))


def main() -> int:
    args = arguments()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
