"""Speed and memory of import and export of a random model, next to what the disk takes in the same minutes.

    python tools/bench_convert.py --scratch /fast/disk [--layers 4 --repeats 3 --workers 2 --max-memory 3G]

The model has the shape of --model with fewer layers (Moonlight with 4: 2.5 B parameters, 5 GB in BF16). By turns:
a plain write of as many bytes by as many processes, import, export; each is timed until its files are synced. Peak
memory is the resident memory of all processes together, sampled.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

from r1train.convert.export_plan import HfTensor, hf_tensors, read_model, split_into_files
from r1train.convert.exporter import ExportOptions, export_checkpoint
from r1train.convert.hf_export_config import model_to_hf
from r1train.convert.import_plan import Options
from r1train.convert.importer import import_checkpoint
from r1train.convert.names import AnyModel, entries
from r1train.convert.report import parse_size
from r1train.convert.safetensors_file import HashingFile, header_bytes
from r1train.convert.source import INDEX_FILE
from r1train.errors import exit_code
from r1train.log.memory import MemorySampler

_SHARD_BYTES = 10**9
_SAMPLE_S = 0.05
_MB = 1e6


def write_random_model(model: AnyModel, folder: Path) -> int:
    """A Hugging Face folder of normally distributed weights; returns its bytes."""
    folder.mkdir(parents=True)
    files = split_into_files(hf_tensors(entries(model), torch.bfloat16), _SHARD_BYTES)
    weight_map: dict[str, str] = {}
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(1)) * 0.02
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        weight_map |= {tensor.name: name for tensor in tensors}
        with open(folder / name, "wb", buffering=0) as file:
            stream = HashingFile(file)
            stream.write(header_bytes(item for tensor in tensors for item in tensor.stored()))
            for tensor in tensors:
                _write_noise(stream, tensor, noise)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(model_to_hf(model, dtype="bfloat16", fp8=False)))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _write_noise(stream: HashingFile, tensor: HfTensor, noise: torch.Tensor) -> None:
    left = tensor.bytes // tensor.dtype.itemsize
    while left:
        count = min(left, len(noise))
        stream.write_tensor(noise[:count].to(tensor.dtype))
        left -= count


def plain_write(path: Path, size: int) -> None:
    block = os.urandom(2**24)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size, len(block)):
            file.write(memoryview(block)[: min(len(block), size - start)])
        os.fsync(file.fileno())


def disk_write(folder: Path, size: int, workers: int) -> None:
    """`size` bytes by `workers` processes, each one file, synced."""
    folder.mkdir()
    with get_context("spawn").Pool(workers) as pool:
        pool.starmap(plain_write, [(folder / str(number), size // workers) for number in range(workers)])


def sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def timed(work: Callable[[], object], folder: Path) -> float:
    start = time.monotonic()
    work()
    sync_files(folder)
    return time.monotonic() - start


def run(args: argparse.Namespace) -> None:
    model = dataclasses.replace(read_model(args.model), num_layers=args.layers)
    scratch, memory = args.scratch / "bench_convert", parse_size(args.max_memory)
    shutil.rmtree(scratch, ignore_errors=True)
    size = write_random_model(model, scratch / "hf")
    imported, exported, plain = scratch / "imported", scratch / "exported", scratch / "plain"
    options = Options(max_memory_bytes=memory, workers=args.workers)
    export_options = ExportOptions(max_memory_bytes=memory, workers=args.workers, max_shard_bytes=_SHARD_BYTES)
    works: dict[str, tuple[Callable[[], object], Path]] = {
        "disk": (lambda: disk_write(plain, size, args.workers), plain),
        "import": (lambda: import_checkpoint(scratch / "hf", imported, options), imported),
        "export": (lambda: export_checkpoint(imported, exported, export_options), exported),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    peaks: dict[str, list[int]] = {name: [] for name in works}
    for _ in range(args.repeats):
        for folder in (imported, exported, plain):
            shutil.rmtree(folder, ignore_errors=True)
        for name, (work, folder) in works.items():
            sampler = MemorySampler(interval_s=_SAMPLE_S, measure="rss")
            sampler.start()
            try:
                seconds[name].append(timed(work, folder))
            finally:
                peaks[name].append(sampler.stop().peak_bytes)
    shutil.rmtree(scratch)
    print(f"{size / 1e9:.2f} GB, {args.workers} workers, --max-memory {args.max_memory}, {args.repeats} turns")
    for name, values in seconds.items():
        rates = sorted(size / value / _MB for value in values)
        share = statistics.median(disk / own for disk, own in zip(seconds["disk"], values, strict=True))
        print(
            f"{name:7s} {statistics.median(rates):5.0f} MB/s ({rates[0]:.0f} to {rates[-1]:.0f}), "
            f"{share:4.0%} of the disk, peak {max(peaks[name]) / 2**20:.0f} MiB"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scratch", type=Path, required=True, help="folder on the disk to measure; needs 4 x the model"
    )
    parser.add_argument("--model", type=Path, default=Path("conf/model/moonlight_16b.yaml"))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-memory", default="3G")
    args = parser.parse_args()
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
