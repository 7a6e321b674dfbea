"""A Hugging Face folder to import: its safetensors files as one set of named tensors, FP8 read as weights."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch

from r1train.config.schema_model import FP8_BLOCK
from r1train.convert.fp8 import SCALE_SUFFIX, dequantise, scale_shape
from r1train.convert.names import Entry
from r1train.convert.safetensors_file import StoredTensor, read_header, read_rows
from r1train.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def weight_files(folder: Path) -> list[str]:
    """The safetensors files of a folder, by its index where it has one.

    Raises CheckpointError for a folder without any, with a sentence about pickled weights where it has those.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of weights ({error!r}). Fix: fetch the file again") from None
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if files:
        return files
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder}: pickled weights ({pickled[0]}) are not read, because loading a pickle runs code from it. "
            "Fix: take the safetensors files of this model, or convert them where you trust the source"
        )
    raise CheckpointError(f"{folder}: no safetensors files there. Fix: name a folder as Hugging Face stores a model")


class HfFolder:
    """The tensors of a folder by name. scales holds those of FP8 tensors under the name of their weight."""

    def __init__(self, folder: Path):
        """Reads headers only. Raises CheckpointError for missing, truncated, damaged or pickled files."""
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        twice = []
        for file in weight_files(folder):
            found = read_header(folder / file)
            twice += sorted(found.keys() & self.tensors.keys())
            self.tensors |= found
        if twice:
            raise CheckpointError(f"{folder}: {twice[0]} is in two files. Fix: remove the files that do not belong")
        self.scales = {
            name: self.tensors.pop(name + SCALE_SUFFIX)
            for name in list(self.tensors)
            if not name.endswith(SCALE_SUFFIX) and name + SCALE_SUFFIX in self.tensors
        }

    def problems(self, entries: Iterable[Entry], *, may_be: Iterable[str]) -> list[str]:
        """Every missing, unexpected or wrongly shaped tensor, and FP8 without scales; empty where all fits.

        may_be: names that are neither required nor unexpected.
        """
        wanted = {part.name: part.shape for entry in entries for part in entry.parts}
        copies = {copy: part.shape for entry in entries for part in entry.parts for copy in part.copies}
        found: list[str] = []
        for name, shape in wanted.items():
            if name not in self.tensors:
                found.append(f"{name} {list(shape)} is missing")
        known = wanted | copies
        allowed = set(may_be)
        for name, tensor in sorted(self.tensors.items()):
            if name not in known:
                if name not in allowed:
                    found.append(f"{name} {list(tensor.shape)} is not a tensor of this model")
            else:
                found += self._wrong(name, tensor, known[name])
        return found

    def _wrong(self, name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> list[str]:
        if tensor.shape != shape:
            return [f"{name} has shape {list(tensor.shape)}, not {list(shape)}"]
        if tensor.dtype not in _FLOATS:
            return [f"{name} has dtype {tensor.dtype}, not a floating-point one"]
        if tensor.dtype != torch.float8_e4m3fn:
            return [f"{name + SCALE_SUFFIX} belongs to a tensor that is not FP8"] if name in self.scales else []
        if name not in self.scales:
            return [f"{name} is FP8 but {name + SCALE_SUFFIX} is missing"]
        scale = self.scales[name]
        if len(shape) != 2 or scale.shape != scale_shape(shape) or scale.dtype != torch.float32:
            return [
                f"{name + SCALE_SUFFIX} has shape {list(scale.shape)} of {scale.dtype}, not one float32 per block of "
                f"{FP8_BLOCK} x {FP8_BLOCK} of {list(shape)}"
            ]
        return []

    def dtype(self, name: str) -> torch.dtype:
        """Of the weights: FP8 becomes BF16, as DeepSeek's own conversion does."""
        dtype = self.tensors[name].dtype
        return torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows of a tensor in `dtype`, dequantised where it is FP8."""
        tensor = self.tensors[name]
        values = read_rows(self.folder, tensor, start, stop)
        if tensor.dtype != torch.float8_e4m3fn:
            return values.to(dtype)
        first = start // FP8_BLOCK
        scale = read_rows(self.folder, self.scales[name], first, -(-stop // FP8_BLOCK))
        return dequantise(values, scale, first_row=start - first * FP8_BLOCK, dtype=dtype)

    def bytes(self) -> int:
        """All stored tensors."""
        stored = [*self.tensors.values(), *self.scales.values()]
        return sum(math.prod(t.shape) * t.dtype.itemsize for t in stored)
