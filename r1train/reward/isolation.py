"""What this host offers to isolate untrusted programs, found out by running one."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from r1train.errors import EnvironmentProblem

Backend = Literal["bwrap", "namespaces", "none"]

LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache")
COMPILER = ("/bin", "/usr/bin", "/usr/include", "/usr/libexec", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
ALL_USERS = 4294967295
CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 6, 7, 21


@dataclass(frozen=True)
class Isolation:
    """backend: how programs are isolated here, "none": they cannot be; note: what was tried and what came of it."""

    backend: Backend
    note: str


@dataclass(frozen=True)
class Views:
    """What a program sees besides its own folder, all read-only. links: symlinks of the host that are made again."""

    paths: tuple[str, ...]
    links: dict[str, str]


def require_isolation(found: Isolation, *, allow_unisolated: bool) -> None:
    """Raises EnvironmentProblem where untrusted code cannot be isolated and the config does not allow that."""
    if found.backend != "none" or allow_unisolated:
        return
    fix = (
        "install bubblewrap (apt install bubblewrap), or allow user name spaces on this host (sysctl "
        "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), "
        "or train without code tasks. reward.code.allow_unisolated=true runs the model's code with your own rights"
    )
    raise EnvironmentProblem(f"this host cannot isolate the code that the model writes: {found.note}. Fix: {fix}")


def choose(attempt: Callable[[Backend], str | None]) -> Isolation:
    """The first backend that works. attempt: runs a program in it; None, or what went wrong.

    bubblewrap first, where it is installed: some hosts keep user name spaces for it alone. Not for root, whom it would
    leave root inside, where the limit of processes does not count.
    """
    notes = []
    if os.geteuid() == 0:
        notes.append("bwrap: not used as root")
    elif shutil.which("bwrap") is None or shutil.which("prlimit") is None:
        notes.append("bwrap: not installed, or no prlimit")
    else:
        problem = attempt("bwrap")
        if problem is None:
            return Isolation("bwrap", f"bubblewrap at {shutil.which('bwrap')}")
        notes.append(f"bwrap: {problem}")
    problem = attempt("namespaces")
    if problem is None:
        return Isolation("namespaces", "as root" if first_user() is not None else "in a user name space")
    return Isolation("none", "; ".join([*notes, f"name spaces: {problem}"]))


def first_user() -> int | None:
    """For root of the host: the lowest of a range of user numbers nobody has; None where there are no such rights."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    capabilities = int(status["CapEff"], 16)
    whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(ALL_USERS)]
    able = all(capabilities >> number & 1 for number in (CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN))
    return 0x70000000 if os.geteuid() == 0 and able and whole else None


@cache
def python_views() -> Views:
    """The interpreter without site-packages of this environment, and shared libraries."""
    prefix = sys.base_prefix
    paths = [] if prefix == "/usr" else [f"{prefix}/lib"]
    return _views((*LIBRARIES, *paths, python_program()))


@cache
def compiler_views() -> Views:
    """The compilers of the system and their headers."""
    return _views((*LIBRARIES, *COMPILER))


@cache
def library_views() -> Views:
    """Shared libraries only, for compiled programs."""
    return _views(LIBRARIES)


def python_program() -> str:
    """The interpreter that this environment was made from."""
    return os.path.realpath(f"{sys.base_exec_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}")


def compiler() -> str | None:
    """g++, None where there is none."""
    return shutil.which("g++", path="/usr/bin:/bin")


def _views(paths: tuple[str, ...]) -> Views:
    there = [path for path in paths if os.path.exists(path)]
    links = {path: os.readlink(path) for path in there if os.path.islink(path)}
    return Views(tuple(path for path in there if path not in links), links)
