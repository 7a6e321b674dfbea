"""What this machine has, and what each missing part switches off: `python -m r1train mode=doctor`."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r1train.dist.probe import deep_ep_problem
from r1train.reward.isolation import compiler
from r1train.reward.jail import probe

GIB = 1024**3
MEMORY_NEEDED_GIB = 6.0  # what the smoke schedule may use, all processes together
DISK_NEEDED_GIB = 2.0  # its run folder, with room to spare
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
COLOURS = {"ok": "green", "missing": "yellow", "wrong": "red"}
IN_CONTAINER = "comes with docker/Dockerfile"

Status = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True)
class Row:
    """One part. found: its version or amount, or 'missing'. note: what it is for, or what its absence switches off."""

    part: str
    found: str
    status: Status
    note: str


@dataclass(frozen=True)
class Package:
    """A distribution we look for. module: its import name; expected: version or series (`5.`) we were tested with.

    expected is empty where any version will do; off: what does not work without it; get: how to get it.
    """

    name: str
    module: str
    expected: str
    off: str
    get: str


REQUIRED = "nothing runs without it"
SETUP = "make setup"
PACKAGES = (
    Package("megatron-core", "megatron.core", "0.19.2", REQUIRED, SETUP),
    Package("transformers", "transformers", "5.", "no Hugging Face configs, no parity tests", SETUP),
    Package("tokenizers", "tokenizers", "", REQUIRED, SETUP),
    Package("math-verify", "math_verify", "", "no accuracy reward for mathematics", SETUP),
    Package("reasoning-gym", "reasoning_gym", "", "no generated reasoning tasks", SETUP),
    Package("py3langid", "py3langid", "", "no language-consistency reward", SETUP),
    Package("psutil", "psutil", "", "no checkpoints (megatron-core needs it)", SETUP),
    Package(
        "transformer-engine", "transformer_engine", "2.", "no FP8 and no fused layers on GPUs", "pip: r1train[gpu]"
    ),
    Package("nvidia-dali", "nvidia.dali", "", "no DALI loader, the Python loader is used", "pip: r1train[gpu]"),
    Package("nvidia-resiliency-ext", "nvidia_resiliency_ext", "", "no hang detection", "pip: r1train[gpu]"),
    Package("flash-attn", "flash_attn", "", "attention runs through cuDNN instead", IN_CONTAINER),
    Package("flash-mla", "flash_mla", "", "no FlashMLA decoding in rollouts", "build FlashMLA in the container"),
    Package("pyarrow", "pyarrow", "", "no corpora from .parquet and .zst files", "pip: r1train[data]"),
    Package("vllm", "vllm", "", "no vllm engine, native generates", "pip: r1train[vllm]"),
    Package("wandb", "wandb", "", "no Weights & Biases, metrics.jsonl and TensorBoard stay", "pip: r1train[wandb]"),
)


def doctor(folder: Path | None = None) -> list[Row]:
    """Every part; changes nothing. folder: where runs will be written (default: the current one)."""
    rows = [_python(), _torch(), _devices(), *map(package_row, PACKAGES), _deep_ep(), _apex()]
    rows += [_slurm(), _code_sandbox(), _cpp_compiler()]
    return [*rows, _disk(folder or Path.cwd()), _memory(), _cores()]


def print_doctor(console: Console | None = None, folder: Path | None = None) -> list[Row]:
    """Print doctor() as a table on the console and return its rows."""
    console = console or Console()
    rows = doctor(folder)
    table = Table(title="r1train doctor", title_justify="left")
    for heading in ("part", "found", "status", "what it means"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.part, escape(row.found), f"[{COLOURS[row.status]}]{row.status}[/]", escape(row.note))
    console.print(table)
    return rows


def package_row(package: Package, version: Callable[[str], str | None] | None = None) -> Row:
    """The row of one package, found through its metadata; nothing is imported. version: name -> installed version."""
    found = (version or installed_version)(package.name)
    if found is None and version is None and _importable(package.module):
        found = (
            "unknown version"  # built from source, or installed under another distribution name (nvidia-dali-cuda130)
        )
    if found is None:
        return Row(package.name, "missing", "missing", f"{package.off}; get it: {package.get}")
    if package.expected and not _matches(found, package.expected):
        return Row(package.name, found, "wrong", f"tested with {package.expected.rstrip('.')}; get it: {package.get}")
    return Row(package.name, found, "ok", "")


def installed_version(name: str) -> str | None:
    """Version of a distribution, also of its CUDA variants (`name-cu13`, `name-cuda130`); None if there is none."""
    for candidate in (name, f"{name}-cu13", f"{name}-cu12", f"{name}-cuda130", f"{name}-cuda120"):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _matches(version: str, expected: str) -> bool:
    """A prefix that ends with a dot names a series; anything else names one version (a local part after + is free)."""
    return version.startswith(expected) if expected.endswith(".") else version.split("+")[0] == expected


def _importable(module: str) -> bool:
    """Whether a module could be imported. Only parents of dotted names are imported, and those are namespaces."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent is missing
        return False


def _python() -> Row:
    version = platform.python_version()
    fits = version.startswith(("3.12.", "3.13."))
    return Row("Python", version, "ok" if fits else "wrong", "" if fits else "megatron-core 0.19.2 needs 3.12 or 3.13")


def _torch() -> Row:
    version = torch.__version__
    fits = version.startswith("2.11.")
    return Row("torch", version, "ok" if fits else "wrong", "" if fits else f"tested with 2.11; get it: {SETUP}")


def _devices() -> Row:
    count = torch.cuda.device_count()
    if not count:
        return Row("CUDA devices", "missing", "missing", "training runs on CPU over gloo in fp32; no FP8, NCCL, vllm")
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    names = {item.name: round(item.total_memory / GIB) for item in properties}
    note = f"CUDA {torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    return Row("CUDA devices", ", ".join(f"{count} x {name} {size} GiB" for name, size in names.items()), "ok", note)


def _apex() -> Row:
    """NVIDIA's apex is known by its compiled module; the package of that name on PyPI is another project."""
    off = "no fused weight gradients in the LM head (slower); get it: " + IN_CONTAINER
    if _importable("fused_weight_gradient_mlp_cuda"):
        return Row("apex", installed_version("apex") or "unknown version", "ok", "")
    if _importable("apex"):
        return Row(
            "apex", installed_version("apex") or "unknown version", "wrong", "not NVIDIA's, or without CUDA: " + off
        )
    return Row("apex", "missing", "missing", off)


def _deep_ep() -> Row:
    """DeepEP counts when it can be imported: a wrong NVSHMEM shows only then."""
    if not _importable("deep_ep"):
        off = "no flex dispatcher, alltoall takes its place; get it: build DeepEP in the container"
        return Row("deep_ep", "missing", "missing", off)
    problem = deep_ep_problem()
    return Row(
        "deep_ep", installed_version("deep_ep") or "unknown version", "wrong" if problem else "ok", problem or ""
    )


def _code_sandbox() -> Row:
    found = probe()
    if found.backend == "none":
        return Row("code sandbox", "missing", "missing", f"code rewards are refused: {found.note}")
    return Row("code sandbox", found.backend, "ok", found.note)


def _cpp_compiler() -> Row:
    found = compiler()
    return Row("C++ compiler", found or "missing", "ok" if found else "missing", "" if found else "no rewards for C++")


def _slurm() -> Row:
    absent = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    if absent:
        found = "missing" if len(absent) == len(SLURM_COMMANDS) else "without " + ", ".join(absent)
        return Row("Slurm", found, "missing", "slurm/*.sbatch cannot be submitted here; log in to a cluster")
    done = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        last_line = done.stderr.strip().rpartition("\n")[2]
        return Row("Slurm", "no cluster", "wrong", f"installed, but no slurm.conf: {last_line}")
    return Row("Slurm", done.stdout.strip().removeprefix("slurm-wlm ").removeprefix("slurm "), "ok", "")


def _disk(folder: Path) -> Row:
    free = shutil.disk_usage(folder).free / GIB
    return _amount("free disk", free, DISK_NEEDED_GIB, f"at {folder}")


def _memory() -> Row:
    return _amount("free memory", psutil.virtual_memory().available / GIB, MEMORY_NEEDED_GIB, "")


def _amount(part: str, found: float, needed: float, where: str) -> Row:
    """A row for GiB found against GiB that the smoke schedule needs."""
    note = where if found >= needed else f"the smoke schedule needs {needed:g} GiB; free some {where}".strip()
    return Row(part, f"{found:.1f} GiB", "ok" if found >= needed else "wrong", note)


def _cores() -> Row:
    """Cores this process may use, which in a container or a Slurm job are fewer than the machine's."""
    cores = len(os.sched_getaffinity(0))
    note = "" if cores >= 2 else "the tiny experiment runs two processes; it will be slow"
    return Row("CPU cores", str(cores), "ok" if cores >= 2 else "wrong", note)
