"""Safetensors files, read and written by row ranges, so that memory never depends on the size of a file.

Format (safetensors documentation): 8 bytes with the header's length, the header in JSON, then the tensors. Read with
pread rather than mmap: mapped pages count as this process's memory.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from r1train.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_FIX = "Fix: fetch this file again and compare its checksum"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, type, shape, and the offset of its first byte in the file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file. Raises CheckpointError, with the file's name, when it is truncated or not safetensors."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path}: truncated or not a safetensors file ({size} bytes). {_FIX}")
            header = json.loads(file.read(length))
        tensors = {
            name: _stored(path.name, body, 8 + length) for name, body in header.items() if name != "__metadata__"
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, but the index names it. {_FIX}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its safetensors header cannot be read ({error!r}). {_FIX}") from None
    end = max((t.offset + math.prod(t.shape) * t.dtype.itemsize for t in tensors.values()), default=8 + length)
    if end != size:
        raise CheckpointError(f"{path}: {size} bytes, but its header describes {end}: truncated or damaged. {_FIX}")
    return tensors


def _stored(file: str, body: dict, data_start: int) -> StoredTensor:
    if body["dtype"] not in DTYPES:
        raise ValueError(f"dtype {body['dtype']} is not one of {', '.join(DTYPES)}")
    dtype, shape = DTYPES[body["dtype"]], tuple(body["shape"])
    start, end = body["data_offsets"]
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"offsets {start} to {end} do not hold {list(shape)} of {body['dtype']}")
    return StoredTensor(file, dtype, shape, data_start + start)


def read_rows(folder: Path, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Rows start to stop (first axis) as a new tensor; a scalar has no rows and cannot be read.

    Raises CheckpointError when the file ends early, because it was cut after its header had been read.
    """
    out = torch.empty((stop - start, *tensor.shape[1:]), dtype=tensor.dtype)
    view = memoryview(out.view(torch.uint8).numpy()).cast("B") if out.numel() else memoryview(b"")
    offset = tensor.offset + start * tensor.row_bytes
    with open(folder / tensor.file, "rb", buffering=0) as file:
        done = 0
        while done < len(view):
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{folder / tensor.file}: ends early, at byte {offset + done}. {_FIX}")
            done += count
    return out


class HashingFile:
    """A binary file that is hashed while it is written; `offset` is the number of bytes so far."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self.offset = 0

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._hash.update(view)
        self._file.write(view)
        self.offset += len(view)
        return len(view)

    def write_tensor(self, tensor: torch.Tensor) -> None:
        """The bytes of a contiguous tensor."""
        if tensor.numel():
            self.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def header_bytes(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """The start of a file whose tensors follow in this order, padded to 8 bytes as the format asks."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
