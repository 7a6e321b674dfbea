"""What a conversion takes and what a folder holds, in words: dry runs and tools/inspect_checkpoint.py."""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from r1train.convert.export_plan import FP8, released_size
from r1train.convert.hf_config import read_hf_config
from r1train.convert.import_plan import Options, plan_import
from r1train.convert.names import AnyModel, entries
from r1train.convert.safetensors_file import NAMES
from r1train.convert.source import HfFolder
from r1train.convert.torch_dist import TorchDistFolder, step_folder
from r1train.convert.work import memory_budget, write_speed
from r1train.errors import CheckpointError
from r1train.log.checkpoints import MARKER

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp8": FP8}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_WEIGHTS = ("embedding.", "decoder.", "mtp.", "output_layer.")


def parse_size(text: str) -> int:
    """Bytes of "8G" or "500M" (powers of two), for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 8G or 500M")
    return int(float(found[1]) * _UNITS[found[2]])


def import_estimate(hf_dir: Path, out: Path, options: Options) -> str:
    """What an import would take; from config.json alone where the folder has no weights.

    Raises CheckpointError with everything that would stop the import.
    """
    if any(hf_dir.glob("*.safetensors")):
        plan, source, _ = plan_import(hf_dir, options)
        read, written, model = source.bytes(), sum(plan.sizes), plan.model
        how = f"{len(source.tensors)} tensors checked"
    else:
        model, fields = read_hf_config(hf_dir / "config.json")
        fp8 = fields.get("quantization_config") is not None
        _, _, read = released_size(model, FP8 if fp8 else torch.bfloat16)
        dtype = options.dtype or torch.bfloat16
        written = sum(math.prod(entry.shape) * dtype.itemsize for entry in entries(model))
        how = "no weights there: from config.json alone" + (", FP8 as its quantization_config says" if fp8 else "")
    return estimate(model, out, read=read, written=written, how=how, limits=options)


def export_estimate(model: AnyModel, out: Path, *, dtype: torch.dtype, limits: Options) -> str:
    """What an export of this model would take, without any weights."""
    tensors, elements, written = released_size(model, dtype)
    read = sum(math.prod(entry.shape) * 2 for entry in entries(model))
    how = f"{tensors:,} tensors, {elements:,} elements in Hugging Face's files; our checkpoint taken as bf16"
    return estimate(model, out, read=read, written=written, how=how, limits=limits)


def estimate(model: AnyModel, out: Path, *, read: int, written: int, how: str, limits: Options) -> str:
    """Time at the speed that the disk of `out` takes now (reading taken as fast), and memory."""
    budget = memory_budget(max_memory_bytes=limits.max_memory_bytes, workers=limits.workers)
    speed = write_speed(out)
    seconds = (read + written) / speed
    return "\n".join(
        [
            f"{model.name}: {how}",
            f"reads {read / 1e9:,.2f} GB, writes {written / 1e9:,.2f} GB to {out}",
            f"time: about {seconds / 3600:.1f} h ({seconds:,.0f} s) at the {speed / 1e6:.0f} MB/s that this disk takes",
            f"memory: at most {limits.max_memory_bytes / 2**30:.1f} GiB in {budget.workers} worker process(es), "
            f"{budget.buffer_bytes / 2**20:.0f} MiB of tensors in each",
        ]
    )


@dataclass(frozen=True)
class Listed:
    """One tensor of a folder."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_weight: bool

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def list_folder(folder: Path) -> tuple[list[Listed], list[str]]:
    """Tensors of a Hugging Face folder, a run folder or a checkpoint folder, and facts about it.

    Raises CheckpointError for anything else.
    """
    if (folder / "config.json").is_file():
        return _hugging_face(folder)
    if (folder / ".metadata").is_file() and not (folder / MARKER).is_file():
        raise CheckpointError(f"{folder} has no {MARKER} marker: it was not written to its end. Fix: use another step")
    step = step_folder(folder)
    found = TorchDistFolder(step).tensors
    listed = [Listed(name, tuple(t.size), t.properties.dtype, name.startswith(_WEIGHTS)) for name, t in found.items()]
    state = json.loads((step / MARKER).read_text())
    facts = [f"checkpoint {step}", "marker: " + ", ".join(f"{key} {value}" for key, value in state.items())]
    return listed, facts


def _hugging_face(folder: Path) -> tuple[list[Listed], list[str]]:
    source = HfFolder(folder)
    listed = [Listed(name, t.shape, t.dtype, True) for name, t in source.tensors.items()]
    listed += [Listed(f"{name}_scale_inv", t.shape, t.dtype, False) for name, t in source.scales.items()]
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    return listed, [f"Hugging Face folder {folder}", f"model_type: {kind}"]


def describe(listed: Iterable[Listed], facts: list[str], *, pattern: str | None = None) -> str:
    """Lines for people: facts, tensors (those whose name holds `pattern`), counts per dtype, parameters."""
    listed = list(listed)
    shown = sorted((t for t in listed if pattern is None or pattern in t.name), key=lambda t: _natural(t.name))
    lines = [*facts, *(f"{NAMES.get(t.dtype, t.dtype)!s:>8} {list(t.shape)!s:<24} {t.name}" for t in shown)]
    weights = [t for t in listed if t.is_weight]
    counts = Counter(str(NAMES.get(t.dtype, t.dtype)) for t in listed)
    lines.append("tensors: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    others = len(listed) - len(weights)
    lines.append(f"parameters: {sum(t.elements for t in weights):,} in {len(weights)} tensors; {others} other tensors")
    return "\n".join(lines)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
