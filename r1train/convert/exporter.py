"""Our checkpoint -> Hugging Face folder that transformers and vLLM load as it is; API behind tools/export_hf.py."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r1train.config.schema_model import FP8_BLOCK
from r1train.convert.carry import carry_files, tokenizer_of_run, write_our_tokenizer
from r1train.convert.export_plan import FP8, HfTensor, check_tensors, hf_tensors, model_of_run, split_into_files
from r1train.convert.fp8 import quantise, squared_error
from r1train.convert.hf_export_config import model_to_hf
from r1train.convert.names import AnyModel, entries
from r1train.convert.records import Records
from r1train.convert.safetensors_file import HashingFile, file_sha256, header_bytes, read_header, read_rows
from r1train.convert.source import INDEX_FILE
from r1train.convert.torch_dist import MANIFEST, TorchDistFolder, integrity_manifest, step_folder
from r1train.convert.work import memory_budget, run_groups
from r1train.data.tokenizer import is_our_tokenizer
from r1train.errors import CheckpointError
from r1train.log.atomic import write_atomically
from r1train.log.checkpoints import EMA_PREFIX

# One element of a block: read, joined, converted, quantised.
_BYTES_PER_ELEMENT = 16
_BLOCK_ELEMENTS = 32 * 2**20
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """dtype: bfloat16, float32, float16 or float8_e4m3fn (DeepSeek's block quantisation); other fields as in import.

    use_ema: the average of the weights (optim.ema_decay) instead of the weights themselves.
    """

    dtype: torch.dtype = torch.bfloat16
    max_shard_bytes: int = 5 * 10**9
    max_memory_bytes: int = 8 * 2**30
    workers: int = 2
    verify: bool = False
    use_ema: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What was written; quantisation_error: root of (squared error / squared weights) over all FP8 tensors, or None."""

    folder: Path
    tensors: int
    bytes: int
    quantisation_error: float | None


@dataclass(frozen=True)
class ExportJob:
    """Writes one safetensors file per group, tensor by tensor, block of rows by block of rows."""

    source: TorchDistFolder
    out: Path
    files: list[list[HfTensor]]
    buffer_bytes: int

    def file_name(self, group: int) -> str:
        return f"model-{group + 1:05d}-of-{len(self.files):05d}.safetensors"

    def run(self, group: int) -> None:
        name, tensors = self.file_name(group), self.files[group]
        partial = self.out / f"{name}.{os.getpid()}.tmp"
        error = squares = 0.0
        with open(partial, "wb", buffering=0) as file:
            stream = HashingFile(file)
            stream.write(header_bytes(item for tensor in tensors for item in tensor.stored()))
            for tensor in tensors:
                scales = []
                for _, weight in self.blocks(tensor):
                    if tensor.dtype != FP8:
                        stream.write_tensor(weight.to(tensor.dtype))
                        continue
                    values, scale = quantise(weight)
                    part = squared_error(weight, values, scale)
                    error, squares = error + part[0], squares + part[1]
                    stream.write_tensor(values)
                    scales.append(scale)
                if scales:
                    stream.write_tensor(torch.cat(scales))
        os.replace(partial, self.out / name)
        record = {"file": name, "bytes": stream.offset, "sha256": stream.sha256, "error": error, "squares": squares}
        Records(self.out).write(group, record)

    def blocks(self, tensor: HfTensor) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of one tensor as stored in our checkpoint, rows valid until the next ones are asked for.

        Rows begin at multiples of 128.
        """
        elements = min(_BLOCK_ELEMENTS, self.buffer_bytes // _BYTES_PER_ELEMENT)
        step = max(1, elements // math.prod(tensor.shape[1:]) // FP8_BLOCK) * FP8_BLOCK
        for start in range(0, tensor.shape[0], step):
            yield start, self._rows(tensor, start, min(tensor.shape[0], start + step))

    def _rows(self, tensor: HfTensor, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, valid until the next call."""
        boxes = []
        for run in tensor.runs:
            first, last = max(start, run.start), min(stop, run.start + run.count)
            if first < last:
                boxes.append((first, last, tensor.entry.offset(first - run.start + run.ours)))
        if len(boxes) == 1:
            return self._box(tensor, *boxes[0])
        return torch.cat([self._box(tensor, *box).clone() for box in boxes])

    def _box(self, tensor: HfTensor, first: int, last: int, place: tuple[int, ...]) -> torch.Tensor:
        shape = (last - first, *tensor.entry.shape[1:])
        box = shape if tensor.entry.expert is None else (1, *shape)
        return self.source.read(tensor.entry.key, place, box).view(shape)


@dataclass(frozen=True)
class VerifyJob:
    """Reads a written file again: its SHA-256, its header, and every value against our checkpoint."""

    job: ExportJob

    def run(self, group: int) -> None:
        out, name = self.job.out, self.job.file_name(group)
        if file_sha256(out / name) != Records(out).read(group)["sha256"]:
            raise CheckpointError(f"{out / name}: its SHA-256 is not what was written. Fix: remove {out}, export again")
        header = read_header(out / name)
        for tensor in self.job.files[group]:
            stored = header[tensor.name]
            for start, weight in self.job.blocks(tensor):
                expected = quantise(weight)[0] if tensor.dtype == FP8 else weight.to(tensor.dtype)
                found = read_rows(out, stored, start, start + len(expected))
                if not torch.equal(found.view(torch.uint8), expected.view(torch.uint8)):
                    raise CheckpointError(f"{out / name}: {tensor.name} differs. Fix: remove {out}, export again")


def export_checkpoint(
    ckpt: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    model: AnyModel | None = None,
    tokenizer: Path | None = None,
) -> ExportResult:
    """Convert the newest finished checkpoint of a run folder, or a step folder.

    model: where the run folder does not say. tokenizer: folder of ours or of Hugging Face; without it the files that
    the import carried along, or those of the run's data folder. Continues where an earlier call with the same arguments
    was killed; the folder is complete when its index is there. Raises CheckpointError, before anything is written, for
    a checkpoint that does not fit, or that keeps no average where that is asked for.
    """
    options = options or ExportOptions()
    step = step_folder(ckpt)
    run = step.parent.parent
    model = model or model_of_run(run)
    config = model_to_hf(model, dtype=_DTYPE_NAMES.get(options.dtype, "bfloat16"), fp8=options.dtype == FP8)
    if (out / INDEX_FILE).is_file():
        raise CheckpointError(f"{out} is finished already. Fix: write to a new folder, or remove this one")
    source, found = _source(step, use_ema=options.use_ema), entries(model)
    check_tensors(source, found)
    files = split_into_files(hf_tensors(found, options.dtype), options.max_shard_bytes)
    chunk = source.largest_chunk_bytes({entry.key for entry in found})
    budget = memory_budget(max_memory_bytes=options.max_memory_bytes, workers=options.workers, least_bytes=2 * chunk)
    records = Records(out)
    stat = (step / ".metadata").stat()
    plan = {"source": str(step.resolve()), "mtime_ns": stat.st_mtime_ns, "config": config, "ema": options.use_ema}
    records.begin(plan | {"files": len(files), "max_shard_bytes": options.max_shard_bytes})
    job = ExportJob(source, out, files, budget.buffer_bytes - chunk)
    sizes = [sum(tensor.bytes for tensor in group) for group in files]
    run_groups(job, records.missing(len(files)), sizes, workers=budget.workers, title="export")
    if options.verify:
        run_groups(VerifyJob(job), list(range(len(files))), sizes, workers=budget.workers, title="verify")
    finished = [records.read(group) for group in range(len(files))]
    _write_small_files(out, config, tokenizer=tokenizer or tokenizer_of_run(run))
    result = _finish(job, finished)
    records.end()
    return result


def _source(step: Path, *, use_ema: bool) -> TorchDistFolder:
    if not use_ema:
        return TorchDistFolder(step)
    source = TorchDistFolder(step, prefix=EMA_PREFIX)
    if not source.tensors:
        fix = "Fix: train with optim.ema_decay, or export the weights themselves (without --ema)"
        raise CheckpointError(f"{step} keeps no average of the weights. {fix}")
    return source


def _finish(job: ExportJob, finished: list[dict]) -> ExportResult:
    """Manifest, then the index: with it the folder is complete."""
    stored = {
        item[0]: (job.file_name(group), math.prod(item[2]) * item[1].itemsize)
        for group, tensors in enumerate(job.files)
        for tensor in tensors
        for item in tensor.stored()
    }
    total = sum(size for _, size in stored.values())
    sums = {record["file"]: record["sha256"] for record in finished}
    small = sorted(
        path.name for path in job.out.iterdir() if path.is_file() and path.suffix not in (".tmp", ".safetensors")
    )
    sums |= {name: file_sha256(job.out / name) for name in small if name != MANIFEST}
    write_atomically(job.out / MANIFEST, integrity_manifest(sums))
    index = {"metadata": {"total_size": total}, "weight_map": {name: file for name, (file, _) in stored.items()}}
    write_atomically(job.out / INDEX_FILE, json.dumps(index, indent=2).encode())
    squares = sum(record["squares"] for record in finished)
    error = math.sqrt(sum(record["error"] for record in finished) / squares) if squares else None
    return ExportResult(job.out, len(stored), total, error)


def _write_small_files(out: Path, config: dict[str, Any], *, tokenizer: Path | None) -> None:
    """Tokenizer and generation config, then config.json with the token ids of either."""
    ids: dict[str, Any] = {}
    if tokenizer is not None and is_our_tokenizer(tokenizer):
        ids = write_our_tokenizer(tokenizer, out, max_length=config["max_position_embeddings"])
        generation = {name: value for name, value in ids.items() if value is not None}
        write_atomically(out / "generation_config.json", json.dumps(generation, indent=2).encode())
    else:
        if tokenizer is not None:
            carry_files(tokenizer, out)
        path = out / "config.json"
        old = json.loads(path.read_text()) if path.is_file() else {}
        ids = {name: old[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in old}
    write_atomically(out / "config.json", json.dumps(config | ids, indent=2).encode())
