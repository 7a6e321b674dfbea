"""What an export is going to write: Hugging Face's tensors with their types, split into files by size."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from r1train.config.schema_model import AnyModelConfig
from r1train.convert.fp8 import SCALE_SUFFIX, scale_shape
from r1train.convert.names import AnyModel, Entry, Run, entries
from r1train.convert.torch_dist import MODEL_FILE, TorchDistFolder
from r1train.errors import CheckpointError

_WEIGHTS = ("embedding.", "decoder.", "mtp.", "output_layer.")
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class HfTensor:
    """One tensor to write. runs: its rows in our tensor `entry`. An FP8 tensor brings its scales along."""

    name: str
    entry: Entry
    shape: tuple[int, ...]
    dtype: torch.dtype
    runs: tuple[Run, ...]

    def stored(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, type and shape of what lands in the file."""
        found = [(self.name, self.dtype, self.shape)]
        if self.dtype == FP8:
            found.append((self.name + SCALE_SUFFIX, torch.float32, scale_shape(self.shape)))
        return found

    @property
    def bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.stored())


def hf_tensors(found: Iterable[Entry], dtype: torch.dtype) -> list[HfTensor]:
    """Every tensor of Hugging Face's checkpoint, copies included. dtype: FP8 leaves in BF16 what DeepSeek leaves."""
    tensors = []
    for entry in found:
        own = torch.float32 if entry.fp32 else dtype
        if own == FP8 and not entry.fp8:
            own = torch.bfloat16
        for number, part in enumerate(entry.parts):
            runs = tuple(run for run in entry.runs() if run.part == number)
            tensors += [HfTensor(name, entry, part.shape, own, runs) for name in (part.name, *part.copies)]
    return tensors


def released_size(model: AnyModel, dtype: torch.dtype) -> tuple[int, int, int]:
    """Tensors, elements and bytes of the Hugging Face checkpoint of a model, without any weights."""
    stored = [item for tensor in hf_tensors(entries(model), dtype) for item in tensor.stored()]
    elements = sum(math.prod(shape) for _, _, shape in stored)
    return len(stored), elements, sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in stored)


def split_into_files(tensors: list[HfTensor], max_shard_bytes: int) -> list[list[HfTensor]]:
    """In order, each file at most max_shard_bytes long unless one tensor alone is longer."""
    files: list[list[HfTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.bytes > max_shard_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes
    return files


def check_tensors(folder: TorchDistFolder, found: list[Entry]) -> None:
    """Raise CheckpointError with every tensor that is missing, unexpected or has another shape."""
    wanted = {entry.key: entry.global_shape for entry in found}
    stored = {key: tuple(t.size) for key, t in folder.tensors.items() if key.startswith(_WEIGHTS)}
    problems = [
        f"{key} {list(shape)} is missing"
        if key not in stored
        else f"{key} has shape {list(stored[key])}, not {list(shape)}"
        for key, shape in wanted.items()
        if stored.get(key) != shape
    ]
    problems += [f"{key} {list(shape)} is not of this model" for key, shape in stored.items() if key not in wanted]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        fix = "Fix: name the model that the checkpoint was trained with"
        raise CheckpointError(f"{folder.folder} does not fit the model, {len(problems)} problem(s):{lines}\n{fix}")


def model_of_run(run: Path) -> AnyModel:
    """The model of a run folder: model.yaml of an import, or the model section of a run's resolved.yaml.

    Raises CheckpointError where there is neither, or it is not a model.
    """
    imported, resolved = run / MODEL_FILE, run / "resolved.yaml"
    if imported.is_file():
        return read_model(imported)
    if resolved.is_file():
        return read_model(resolved, section="model")
    raise CheckpointError(f"{run}: neither {MODEL_FILE} nor resolved.yaml there. Fix: --model FILE, as in conf/model")


def read_model(path: Path, *, section: str | None = None) -> AnyModel:
    """A model from a YAML file in the form of conf/model, or from a section of it."""
    try:
        tree: Any = yaml.safe_load(path.read_text())
        tree = tree[section] if section else tree
        return TypeAdapter(AnyModelConfig).validate_python({"architecture": "deepseek"} | tree)
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model config ({error}). Fix: write it as in conf/model") from None
