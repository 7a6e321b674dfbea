"""mode=doctor: each part is reported with what its absence switches off, and nothing heavy is imported."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from r1train.report import doctor as module
from r1train.report.doctor import PACKAGES, Package, Row, doctor, package_row, print_doctor
from r1train.reward.jail import Isolation

PARTS = {
    *("Python", "torch", "CUDA devices", "megatron-core", "transformer-engine", "apex", "nvidia-dali", "deep_ep"),
    *("flash-attn", "flash-mla", "vllm", "nvidia-resiliency-ext", "wandb", "transformers", "tokenizers", "math-verify"),
    *("reasoning-gym", "py3langid", "psutil", "pyarrow", "Slurm", "free disk", "free memory", "CPU cores"),
    *("code sandbox", "C++ compiler"),
}
MCORE = next(package for package in PACKAGES if package.name == "megatron-core")


def row_of(part: str) -> Row:
    return next(row for row in doctor() if row.part == part)


def test_every_part_is_listed_once():
    parts = [row.part for row in doctor()]
    assert sorted(parts) == sorted(PARTS)


def test_what_is_installed_here_is_ok():
    rows = {row.part: row for row in doctor()}
    required = ("Python", "torch", "megatron-core", "transformers", "tokenizers", "math-verify", "psutil", "py3langid")
    assert {part: rows[part].status for part in required} == dict.fromkeys(required, "ok")
    assert rows["megatron-core"].found == "0.19.2"


@pytest.mark.parametrize(
    ("version", "status", "found"),
    [
        ("0.19.2", "ok", "0.19.2"),
        ("0.19.2+local", "ok", "0.19.2+local"),
        ("0.19.20", "wrong", "0.19.20"),
        ("0.19.1", "wrong", "0.19.1"),
        (None, "missing", "missing"),
    ],
)
def test_megatron_core_must_be_the_exact_version(version, status, found):
    row = package_row(MCORE, lambda name: version)
    assert (row.status, row.found) == (status, found)
    assert status == "ok" or "make setup" in row.note


def test_a_series_matches_by_prefix():
    package = Package("x", "x", "2.", "no x", "somewhere")
    assert package_row(package, lambda name: "2.20.2").status == "ok"
    assert package_row(package, lambda name: "1.2.0").note == "tested with 2; get it: somewhere"


def test_missing_says_what_is_off_and_how_to_get_it():
    row = package_row(Package("no-such-package", "no.such.module", "", "no such thing", "nowhere"))
    assert row == Row("no-such-package", "missing", "missing", "no such thing; get it: nowhere")


def test_module_without_metadata_counts(tmp_path, monkeypatch):
    (tmp_path / "built_by_hand.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    row = package_row(Package("built-by-hand", "built_by_hand", "", "off", "get"))
    assert (row.status, row.found) == ("ok", "unknown version")


def test_cuda_variant_of_a_distribution_counts(monkeypatch):
    def version(name):
        if name == "nvidia-dali-cuda130":
            return "2.4.0"
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", version)
    assert module.installed_version("nvidia-dali") == "2.4.0"
    assert module.installed_version("vllm") is None


def test_pypi_apex_is_not_taken_for_nvidias(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex/__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    row = row_of("apex")
    assert row.status == "wrong" and "not NVIDIA's" in row.note
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").write_text("")
    assert row_of("apex").status == "ok"


def test_devices(monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    assert row_of("CUDA devices").status == "missing"
    h200 = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 1024**3)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module.torch.cuda, "get_device_properties", lambda index: h200)
    monkeypatch.setattr(module.torch.cuda.nccl, "version", lambda: (2, 28, 9))
    row = row_of("CUDA devices")
    assert (row.found, row.status) == ("2 x NVIDIA H200 139 GiB", "ok")
    assert row.note.endswith("NCCL 2.28.9")


def test_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert row_of("Slurm").found == "missing"
    for name in module.SLURM_COMMANDS:
        (tmp_path / name).write_text("#!/bin/sh\necho slurm 22.05.8\n")
        (tmp_path / name).chmod(0o755)
    assert row_of("Slurm") == Row("Slurm", "22.05.8", "ok", "")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho sbatch: fatal: no configuration source >&2\nexit 1\n")
    row = row_of("Slurm")
    assert (row.found, row.status) == ("no cluster", "wrong")
    assert row.note == "installed, but no slurm.conf: sbatch: fatal: no configuration source"
    (tmp_path / "srun").unlink()
    row = row_of("Slurm")
    assert (row.found, row.status) == ("without srun", "missing")


def test_too_little_memory_and_disk_are_wrong(monkeypatch):
    gib = 1024**3
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * gib))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=gib // 2))
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0})
    rows = {row.part: row for row in doctor()}
    assert (rows["free memory"].found, rows["free memory"].status) == ("5.0 GiB", "wrong")
    assert (rows["free disk"].found, rows["free disk"].status) == ("0.5 GiB", "wrong")
    assert "6 GiB" in rows["free memory"].note and "2 GiB" in rows["free disk"].note
    assert (rows["CPU cores"].found, rows["CPU cores"].status) == ("1", "wrong")


def test_table_shows_every_part():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = print_doctor(console)
    text = console.export_text()
    assert all(row.part in text and row.status in text for row in rows)
    missing = [row for row in rows if row.part == "wandb" and row.status == "missing"]
    assert all("r1train[wandb]" in text for row in missing)  # brackets are text here, not markup


@pytest.mark.parametrize(
    ("backend", "note", "expected"),
    [
        ("none", "no user namespaces", ("missing", "missing", "code rewards are refused: no user namespaces")),
        ("bubblewrap", "0.8.0", ("bubblewrap", "ok", "0.8.0")),
    ],
)
def test_code_sandbox(monkeypatch, backend, note, expected):
    monkeypatch.setattr(module, "probe", lambda: Isolation(backend, note))
    row = row_of("code sandbox")
    assert (row.found, row.status, row.note) == expected


def test_broken_deep_ep_is_named(monkeypatch):
    monkeypatch.setattr(module, "_importable", lambda name: name == "deep_ep")
    monkeypatch.setattr(module, "deep_ep_problem", lambda: "libnvshmem.so: no such file")
    row = row_of("deep_ep")
    assert (row.status, row.note) == ("wrong", "libnvshmem.so: no such file")


def test_nothing_heavy_is_imported():
    code = "import sys; from r1train.report.doctor import doctor; doctor(); print(*sorted(set(sys.modules) & HEAVY))"
    heavy = {
        "transformers",
        "vllm",
        "reasoning_gym",
        "math_verify",
        "transformer_engine",
        "deep_ep",
        "flash_attn",
        "wandb",
    }
    done = subprocess.run(
        [sys.executable, "-c", code.replace("HEAVY", repr(heavy))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
