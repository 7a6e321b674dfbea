"""Our checkpoint folders without a model: megatron-core's torch_dist format, written and read one piece at a time.

torch.distributed.checkpoint stores every piece as one torch.save in a .distcp file, and a pickled Metadata that says
where each piece lies and which box of which tensor it is. Any split into boxes loads in any layout.
"""

import io
import json
import math
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from r1train.convert.safetensors_file import DTYPES, HashingFile
from r1train.errors import CheckpointError
from r1train.log.atomic import write_atomically
from r1train.log.checkpoints import MARKER, checkpoints

MANIFEST = "integrity.json"  # megatron-core's name and format: dist_checkpointing.load(verify_integrity=True) reads it
_COMMON = "common_state/shard_0_1"  # megatron-core's object with everything that is not a tensor
_COMMON_FILE = "__common_0.distcp"
METADATA_FILES = (".metadata", "metadata.json", _COMMON_FILE)
MODEL_FILE = "model.yaml"  # in the run folder of an import: the model, in the form of conf/model


@dataclass(frozen=True)
class Piece:
    """A box of one tensor in a file: offset and shape within the tensor of global_shape; begin and length in bytes."""

    key: str
    dtype: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    begin: int
    length: int


def write_piece(stream: HashingFile, tensor: torch.Tensor) -> tuple[int, int]:
    """Append one box; returns where it begins and how long it is, in bytes."""
    begin = stream.offset
    torch.save(tensor, stream)
    return begin, stream.offset - begin


class PieceReader:
    """Reads boxes one after another into the same memory.

    Fresh memory for every box costs a page fault per 4 KiB, which on a virtual machine takes longer than the reading.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def read(self, piece: Piece) -> torch.Tensor:
        """One box, valid until the next call.

        Raises CheckpointError, with the file's name, when it is truncated or damaged.
        """
        return self.load(_StorageInfo(piece.file, piece.begin, piece.length), piece.key)

    def load(self, place: _StorageInfo, key: str) -> torch.Tensor:
        path = self._folder / place.relative_path
        try:
            with open(path, "rb", buffering=0) as file:
                view = _create_file_view(file, place.offset, place.length)
                # On the meta device torch.load reads the description alone, and says where in the view the data begin.
                described = torch.load(view, map_location="meta", weights_only=True)
                storage = described.untyped_storage()
                self._fill(file.fileno(), place.offset + storage._checkpoint_offset, storage.nbytes())
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path}: {key} cannot be read ({str(error).splitlines()[0]}): truncated or damaged. "
                "Fix: use another checkpoint"
            ) from None
        box = torch.empty(0, dtype=described.dtype)
        return box.set_(self._buffer.untyped_storage(), described.storage_offset(), described.shape, described.stride())

    def _fill(self, descriptor: int, offset: int, size: int) -> None:
        if self._buffer.numel() < size:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # freed before the larger one is taken
            self._buffer = torch.empty(size, dtype=torch.uint8)
        view = memoryview(self._buffer.numpy())[:size]
        done = 0
        while done < size:
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise EOFError(f"ends early, at byte {offset + done}")
            done += count


def write_metadata(folder: Path, pieces: Iterable[Piece]) -> None:
    """What makes a folder of .distcp files a checkpoint: .metadata, the common state, metadata.json."""
    tensors: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for piece in pieces:
        if piece.key not in tensors:
            properties = TensorProperties(dtype=DTYPES[piece.dtype])
            tensors[piece.key] = TensorStorageMetadata(properties, torch.Size(piece.global_shape), [])
        chunks = tensors[piece.key].chunks
        offset = torch.Size(piece.offset)
        index = MetadataIndex(piece.key, offset, len(chunks))
        chunks.append(ChunkStorageMetadata(offset, torch.Size(piece.shape)))
        storage[index] = _StorageInfo(piece.file, piece.begin, piece.length)
    common = io.BytesIO()
    torch.save([{}], common)
    write_atomically(folder / _COMMON_FILE, common.getvalue())
    tensors[_COMMON] = BytesStorageMetadata()
    storage[MetadataIndex(_COMMON)] = _StorageInfo(_COMMON_FILE, 0, common.tell())
    metadata = Metadata(tensors, storage_data=storage, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    write_atomically(folder / ".metadata", pickle.dumps(metadata))
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    write_atomically(folder / "metadata.json", json.dumps(config).encode())


def step_folder(path: Path) -> Path:
    """The newest finished checkpoint of a run folder, or the checkpoint folder itself.

    Raises CheckpointError where there is none.
    """
    if (path / MARKER).is_file():
        return path
    found = checkpoints(path)
    if not found:
        raise CheckpointError(
            f"{path}: no finished checkpoint there (checkpoints/step_*/{MARKER}). "
            "Fix: name a run folder or a step folder that was written to its end"
        )
    return found[-1]


class TorchDistFolder:
    """A finished checkpoint to read boxes from."""

    def __init__(self, folder: Path, *, prefix: str = ""):
        """prefix: only tensors whose names begin with it, under their names without it.

        Raises CheckpointError for a folder without marker or with unreadable metadata.
        """
        if not (folder / MARKER).is_file():
            raise CheckpointError(f"{folder} has no {MARKER} marker: it was not written to its end. Fix: use another")
        try:
            metadata = pickle.loads((folder / ".metadata").read_bytes())
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{folder}/.metadata cannot be read ({error}). Fix: use another checkpoint") from None
        self.folder = folder
        self._prefix = prefix
        self.tensors: dict[str, TensorStorageMetadata] = {
            key.removeprefix(prefix): value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata) and key.startswith(prefix)
        }
        self._storage: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self._reader = PieceReader(folder)
        self._loaded: tuple[MetadataIndex | None, torch.Tensor] = (None, torch.empty(0))

    def largest_chunk_bytes(self, keys: Iterable[str]) -> int:
        """Bytes of the largest stored box: what reading needs at once."""
        return max(
            math.prod(chunk.sizes) * self.tensors[key].properties.dtype.itemsize
            for key in keys
            for chunk in self.tensors[key].chunks
        )

    def read(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        """A box of a tensor, put together from the stored boxes, valid until the next call.

        Raises CheckpointError where a part is not stored.
        """
        found: list[tuple[tuple[slice, ...], tuple[slice, ...], MetadataIndex]] = []
        covered = 0
        for number, chunk in enumerate(self.tensors[key].chunks):
            starts = [max(a, b) for a, b in zip(offset, chunk.offsets, strict=True)]
            ends = [min(a + n, b + m) for a, n, b, m in zip(offset, shape, chunk.offsets, chunk.sizes, strict=True)]
            if any(start >= end for start, end in zip(starts, ends, strict=True)):
                continue
            inside = tuple(slice(s - b, e - b) for s, e, b in zip(starts, ends, chunk.offsets, strict=True))
            target = tuple(slice(s - a, e - a) for s, e, a in zip(starts, ends, offset, strict=True))
            found.append((target, inside, MetadataIndex(self._prefix + key, chunk.offsets, number)))
            covered += math.prod(e - s for s, e in zip(starts, ends, strict=True))
        if covered != math.prod(shape):
            raise CheckpointError(f"{self.folder}: {key} is stored in part only. Fix: use another checkpoint")
        if len(found) == 1:
            return self._chunk(found[0][2])[found[0][1]]
        out = torch.empty(shape, dtype=self.tensors[key].properties.dtype)
        for target, inside, index in found:
            out[target] = self._chunk(index)[inside]
        return out

    def _chunk(self, index: MetadataIndex) -> torch.Tensor:
        """A stored box; the last one is kept, because neighbouring rows are asked for one after another."""
        if self._loaded[0] != index:
            self._loaded = (None, torch.empty(0))  # no half-read box under the old name when reading fails
            self._loaded = (index, self._reader.load(self._storage[index], index.fqn))
        return self._loaded[1]


def integrity_manifest(sums: dict[str, str]) -> bytes:
    """SHA-256 sums by file name, as megatron-core writes them."""
    return json.dumps({"algorithm": "sha256", "files": dict(sorted(sums.items()))}, indent=2).encode()
