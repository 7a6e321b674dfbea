"""One program for the sandbox, and how each kind of isolation is started with it."""

import base64
import fcntl
import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1train.errors import EnvironmentProblem
from r1train.reward.isolation import DEVICES, Backend, Views, first_user, python_program
from r1train.reward.seccomp import filter_program

FOLDER = "/scratch"
# An interpreter outside /usr may find its own library only by this (modules on clusters, relocated builds).
LIBRARY_PATH = {"LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": FOLDER,
    "TMPDIR": FOLDER,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    **LIBRARY_PATH,
}
# -I -S: no packages of the host, so that a verdict does not depend on what is installed there.
PYTHON = (python_program(), "-I", "-S", "-B", "-X", "utf8")
INIT = str(Path(__file__).with_name("jail_init.py"))


@dataclass(frozen=True)
class Limits:
    """Of one program. cpu_s: of each process; wall_s: on the clock. The others: see CodeConfig."""

    cpu_s: float
    wall_s: float
    memory_bytes: int
    scratch_bytes: int
    output_bytes: int
    processes: int


@dataclass(frozen=True)
class Job:
    """One program. command: with full paths inside; files: what its folder holds at the start; stdin: all of it."""

    command: tuple[str, ...]
    limits: Limits
    views: Views
    files: dict[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""


def sealed(content: bytes) -> int:
    """Descriptor of a file in memory that nobody can change or grow, at its start."""
    number = os.memfd_create("r1train", os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    os.lseek(number, 0, os.SEEK_SET)
    return number


def files_to_hand_over(job: Job, *, backend: Backend, base: str) -> list[int]:
    """Descriptors that the sandbox gets: the whole job, or for bwrap the filter and each file."""
    if backend == "bwrap":
        return [sealed(filter_program()), *map(sealed, job.files.values())]
    record = {
        "isolated": backend == "namespaces",
        "base": base,
        "folder": FOLDER,
        "views": job.views.paths,
        "devices": DEVICES,
        "links": job.views.links,
        "scratch_bytes": job.limits.scratch_bytes,
        "files": {name: base64.b64encode(content).decode() for name, content in job.files.items()},
        "command": [part.replace(FOLDER, base) if backend == "none" else part for part in job.command],
        "environment": ENVIRONMENT,
        "limits": _rlimits(job.limits, backend),
        "filter": base64.b64encode(filter_program()).decode(),
        "first_user": first_user() if backend == "namespaces" else None,
    }
    return [sealed(json.dumps(record).encode())]


def start_command(job: Job, *, backend: Backend, status: int, handed: Sequence[int]) -> list[str]:
    """The command that builds the sandbox. status: where it reports; handed: from files_to_hand_over."""
    if backend != "bwrap":
        return [*PYTHON, INIT, str(handed[0]), str(status)]
    program, *files = map(str, handed)
    bwrap, prlimit = (shutil.which(name) for name in ("bwrap", "prlimit"))
    assert bwrap is not None and prlimit is not None
    words = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    words += ["--json-status-fd", str(status), "--seccomp", program]
    for path in (*job.views.paths, prlimit):
        words += ["--ro-bind", path, path]
    for path in DEVICES:
        words += ["--dev-bind", path, path]
    for path, pointee in job.views.links.items():
        words += ["--symlink", pointee, path]
    words += ["--size", str(job.limits.scratch_bytes), "--tmpfs", FOLDER]
    for name, number in zip(job.files, files, strict=True):
        words += ["--perms", "0755", "--file", number, f"{FOLDER}/{name}"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    table = _rlimits(job.limits, backend)
    limits = [f"--{name.lower()}={value}" for name, value in table.items() if name != "CPU"]
    limits.append(f"--cpu={table['CPU']}:{table['CPU'] + 1}")  # first SIGXCPU, then SIGKILL
    return [*words, "--remount-ro", "/", "--chdir", FOLDER, "--", prlimit, *limits, "--", *job.command]


def _rlimits(limits: Limits, backend: Backend) -> dict[str, int]:
    """Raises EnvironmentProblem for more memory than this process may give."""
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    if allowed != resource.RLIM_INFINITY and allowed < limits.memory_bytes:
        what = f"this process may use {allowed} bytes (ulimit -H -v), so a program cannot get {limits.memory_bytes}"
        raise EnvironmentProblem(f"{what}. Fix: a smaller reward.code.memory_bytes, or a higher limit")
    table = {"AS": limits.memory_bytes, "FSIZE": limits.scratch_bytes, "NOFILE": 64, "CORE": 0, "MEMLOCK": 0}
    table |= {"MSGQUEUE": 0, "CPU": math.ceil(limits.cpu_s)}
    # Outside a name space of its own, the count would take in everything else that this user runs.
    return table if backend == "none" else table | {"NPROC": limits.processes + 1}
