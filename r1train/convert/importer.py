"""Hugging Face folder -> checkpoint that train/checkpoint.py loads in any layout; API behind tools/import_hf.py."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from r1train.convert.carry import HF_FILES, carry_files
from r1train.convert.hf_config import not_trusted
from r1train.convert.import_plan import ImportPlan, Options, assemble, blocks, plan_import
from r1train.convert.records import Records
from r1train.convert.safetensors_file import NAMES, HashingFile, file_sha256
from r1train.convert.source import HfFolder
from r1train.convert.torch_dist import (
    MANIFEST,
    METADATA_FILES,
    MODEL_FILE,
    Piece,
    PieceReader,
    integrity_manifest,
    write_metadata,
    write_piece,
)
from r1train.convert.work import memory_budget, run_groups
from r1train.errors import CheckpointError
from r1train.log.atomic import write_atomically
from r1train.log.checkpoints import MARKER

# What one element of a piece costs at most while it is read, converted, joined and written.
_BYTES_PER_ELEMENT = 16
_BLOCK_ELEMENTS = 64 * 2**20


@dataclass(frozen=True)
class ImportJob:
    """Writes one .distcp file per group."""

    source: HfFolder
    out: Path
    plan: ImportPlan
    buffer_bytes: int

    def run(self, group: int) -> None:
        torch.serialization.set_crc32_options(False)  # the manifest has SHA-256 sums, and the checksum costs time
        records = Records(self.out)
        name = f"__{group}_0.distcp"
        partial = self.out / f"{name}.{os.getpid()}.tmp"
        pieces = []
        with open(partial, "wb", buffering=0) as file:
            stream = HashingFile(file)
            for number, start, stop in self._blocks(group):
                entry = self.plan.entries[number]
                dtype = self.plan.dtypes[entry.key]
                tensor = assemble(self.source, entry, start, stop, dtype)
                tensor = tensor if entry.expert is None else tensor[None]
                begin, length = write_piece(stream, tensor)
                place = (entry.key, NAMES[dtype], entry.global_shape, entry.offset(start), tuple(tensor.shape))
                pieces.append(Piece(*place, name, begin, length))
        os.replace(partial, self.out / name)
        record = {"file": name, "bytes": stream.offset, "sha256": stream.sha256}
        records.write(group, record | {"pieces": [dataclasses.astuple(piece) for piece in pieces]})

    def _blocks(self, group: int) -> Iterator[tuple[int, int, int]]:
        for number, start, stop in self.plan.groups[group]:
            entry = self.plan.entries[number]
            elements = min(_BLOCK_ELEMENTS, self.buffer_bytes // _BYTES_PER_ELEMENT)
            max_rows = max(1, elements // math.prod(entry.shape[1:]))
            yield from ((number, *block) for block in blocks(entry, start, stop, max_rows))


@dataclass(frozen=True)
class VerifyJob:
    """Reads a group's file again: its SHA-256, and every value against the source."""

    job: ImportJob

    def run(self, group: int) -> None:
        plan, folder = self.job.plan, self.job.out
        by_place = {(entry.key, entry.expert): entry for entry in plan.entries}
        record = Records(folder).read(group)
        file = folder / record["file"]
        if file_sha256(file) != record["sha256"]:
            raise CheckpointError(f"{file}: its SHA-256 is not what was written. Fix: remove {folder}, import again")
        reader = PieceReader(folder)
        for piece in pieces_of(record):
            expert = len(piece.shape) == 3
            entry = by_place[piece.key, piece.offset[0] if expert else None]
            start, rows = piece.offset[1 if expert else 0], piece.shape[1 if expert else 0]
            expected = assemble(self.job.source, entry, start, start + rows, plan.dtypes[entry.key])
            # As bytes: a NaN equals itself.
            if not torch.equal(reader.read(piece).reshape(-1).view(torch.uint8), _bytes(expected)):
                raise CheckpointError(
                    f"{file}: {piece.key} differs from the source. Fix: remove {folder}, import again"
                )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def pieces_of(record: dict) -> list[Piece]:
    """The pieces that a group's record lists."""
    return [
        Piece(key, dtype, tuple(whole), tuple(offset), tuple(shape), file, begin, length)
        for key, dtype, whole, offset, shape, file, begin, length in record["pieces"]
    ]


def import_checkpoint(hf_dir: Path, out: Path, options: Options | None = None) -> Path:
    """Convert; returns the checkpoint, out/checkpoints/step_00000000, so that `out` serves as stage.init_from.

    Continues where an earlier call with the same arguments was killed. Raises CheckpointError, before anything is
    written, for a folder that does not fit and for an output that is finished already.
    """
    options = options or Options()
    step = out / "checkpoints" / "step_00000000"
    if (step / MARKER).is_file():
        raise CheckpointError(f"{step} is finished already. Fix: write to a new folder, or remove this one")
    plan, source, fields = plan_import(hf_dir, options)
    budget = memory_budget(max_memory_bytes=options.max_memory_bytes, workers=options.workers)
    records = Records(step)
    records.begin({"source": str(hf_dir.resolve()), "config": fields, "tensors": _fingerprint(plan, source)})
    job = ImportJob(source, step, plan, budget.buffer_bytes)
    run_groups(job, records.missing(len(plan.groups)), plan.sizes, workers=budget.workers, title="import")
    if options.verify:
        everything = list(range(len(plan.groups)))
        run_groups(VerifyJob(job), everything, plan.sizes, workers=budget.workers, title="verify")
    _finish(step, [records.read(group) for group in range(len(plan.groups))])
    carry_files(hf_dir, out / HF_FILES)
    write_atomically(out / MODEL_FILE, yaml.safe_dump(dataclasses.asdict(plan.model), sort_keys=False).encode())
    for sentence in not_trusted(fields):
        print(sentence, file=sys.stderr)
    write_atomically(step / MARKER, json.dumps({"step": 0, "tokens": 0, "position": 0}).encode())
    records.end()
    return step


def _finish(step: Path, finished: list[dict]) -> None:
    """Metadata and manifest over the groups' files."""
    write_metadata(step, (piece for record in finished for piece in pieces_of(record)))
    sums = {record["file"]: record["sha256"] for record in finished}
    sums |= {name: file_sha256(step / name) for name in METADATA_FILES}
    write_atomically(step / MANIFEST, integrity_manifest(sums))


def _fingerprint(plan: ImportPlan, source: HfFolder) -> list:
    """What has to be the same for finished groups to count: types of ours, and files of the source with their sizes."""
    files = sorted({tensor.file for tensor in source.tensors.values()})
    stats = [(file, (source.folder / file).stat()) for file in files]
    dtypes = sorted({str(dtype) for dtype in plan.dtypes.values()})
    return [*dtypes, len(plan.entries), *([file, stat.st_size, stat.st_mtime_ns] for file, stat in stats)]
