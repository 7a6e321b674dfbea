"""Enters the sandbox and runs one program in it: python -I -S jail_init.py JOB_FD STATUS_FD, started by jail.py only.

Three processes. The launcher (outside the new pid name space) builds the file tree. The first process of the new name
space waits for the program; when it ends, or its launcher is killed, the kernel ends every process in there. The
program runs without capabilities, with limits and the system-call filter. It imports nothing of the project: only
the standard library, without site, is fast enough to be started for every test.
"""

import base64
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

# From linux/sched.h, linux/mount.h, linux/prctl.h.
NEW_USER, NEW_REST = 0x10000000, 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH = -100, 0x8000, 2
SYS_MOUNT_SETATTR = 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SYS_PIVOT_ROOT, SYS_CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}[os.uname().machine]
LAST_CAPABILITY = 63
NICE = 5  # training comes first
INSIDE_ID = 1000  # the user's number in a user name space; any but 0 would do

LIBC = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


class FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def checked(result: int, what: str) -> None:
    """Raises OSError with errno when a libc call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    checked(LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {source} on {target}")


def restrict(path: str, attributes: int, *, recursive: bool) -> None:
    """mount_setattr, which reaches the mounts below too (Linux 5.12)."""
    record = MountAttributes(attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    call = (SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, ctypes.byref(record), ctypes.sizeof(record))
    checked(LIBC.syscall(*call), f"mount_setattr {path}")


def enter_namespaces(user: int | None) -> int:
    """New mount, pid, net, ipc, uts and cgroup name spaces; returns the user number that the program will have.

    user: a number of the host, for root; None: a user name space in which this user is INSIDE_ID.
    """
    if user is not None:
        os.unshare(NEW_REST)
        return user
    uid, gid = os.getuid(), os.getgid()
    os.unshare(NEW_REST | NEW_USER)
    for name, line in (("setgroups", "deny"), ("uid_map", f"{INSIDE_ID} {uid} 1"), ("gid_map", f"{INSIDE_ID} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    return INSIDE_ID


def build_tree(job: dict[str, Any], user: int) -> None:
    """A tree of read-only views plus one writable folder in memory, and nothing else; then it is the root."""
    base = job["base"]
    mount("none", "/", None, MS_REC | MS_PRIVATE, "")
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in [*job["views"], *job["devices"]]:
        target = base + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
        mount(path, target, None, MS_BIND | MS_REC, "")
        device = 0 if path in job["devices"] else ATTR_NODEV
        restrict(target, ATTR_RDONLY | ATTR_NOSUID | device, recursive=True)
    for path, pointee in job["links"].items():
        os.makedirs(os.path.dirname(base + path), exist_ok=True)
        os.symlink(pointee, base + path)
    scratch = base + job["folder"]
    os.mkdir(scratch)
    options = f"size={job['scratch_bytes']},nr_inodes=4096,mode=700,uid={user},gid={user}"
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, options)
    write_files(scratch, job["files"])
    os.chdir(base)
    checked(LIBC.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    checked(LIBC.umount2(b".", MNT_DETACH), "umount2")
    restrict("/", ATTR_RDONLY, recursive=False)
    os.chdir(job["folder"])


def write_files(folder: str, files: dict[str, str]) -> None:
    """files: name -> base64 of its content. Readable and executable for all: their owner may be another user."""
    for name, content in files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(base64.b64decode(content))
            os.fchmod(file.fileno(), 0o755)


def drop_privileges(user: int | None) -> None:
    """No capabilities now or after any exec, and another user where root started this."""
    if user is not None:
        for capability in range(LAST_CAPABILITY + 1):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL above the kernel's last one
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked(LIBC.syscall(SYS_CAPSET, header, (ctypes.c_uint32 * 6)()), "capset")


def set_limits(limits: dict[str, int]) -> None:
    """limits: name of an RLIMIT -> value. The hard CPU limit is one second later, for programs that catch SIGXCPU."""
    for name, value in limits.items():
        hard = value + 1 if name == "CPU" else value
        resource.setrlimit(vars(resource)[f"RLIMIT_{name}"], (value, hard))


def load_filter(program: bytes) -> None:
    checked(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    record = FilterProgram(len(program) // 8, program)
    checked(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(record), 0, 0), "seccomp")


def send(status: int, message: dict[str, Any]) -> None:
    os.write(status, json.dumps(message).encode() + b"\n")


def run_program(job: dict[str, Any], status: int) -> None:
    """The program itself; does not return."""
    try:
        os.setsid()
        os.nice(NICE)
        set_limits(job["limits"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
            signal.signal(number, signal.SIG_DFL)
        load_filter(base64.b64decode(job["filter"]))
        os.execve(job["command"][0], job["command"], job["environment"])
    except (OSError, ValueError) as error:  # ValueError: a limit above the hard one that this process inherited
        send(status, {"setup_error": str(error)})
    os._exit(127)


def first_process(job: dict[str, Any], *, status: int, user: int | None, alive: int) -> None:
    """Waits for the program and says how it ended; does not return, and takes every other process along.

    alive: a pipe on which the launcher writes one byte: without it the launcher died before we asked for its death.
    """
    try:
        os.setsid()
        if job["isolated"]:
            drop_privileges(user)
        else:
            LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
        LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program may not trace this process
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a handler nobody in here can signal it
        if os.read(alive, 1) != b"x":
            os._exit(1)
        send(status, {"started": True})
        program = os.fork()
        if program == 0:
            run_program(job, status)
        ended, code = 0, 0
        while ended != program:
            ended, code = os.wait()
        if not job["isolated"]:
            end_the_rest()
        send(status, {"code": os.waitstatus_to_exitcode(code)})
    except OSError as error:
        send(status, {"setup_error": str(error)})
    os._exit(0)


def end_the_rest() -> None:
    """Without a pid name space: kills what the program left running and this process inherited."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = file.read().split()
        if not children:
            return
        for child in children:
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)


def launch(job_fd: int, status: int) -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with os.fdopen(job_fd, "rb") as file:
        job = json.load(file)
    os.set_inheritable(status, False)
    user = os.getpid() + job["first_user"] if job["first_user"] is not None else None
    try:
        if job["isolated"]:
            build_tree(job, enter_namespaces(user))
        else:
            write_files(job["base"], job["files"])
            os.chdir(job["base"])
    except OSError as error:
        send(status, {"setup_error": str(error)})
        return
    alive, tell = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(tell)
        first_process(job, status=status, user=user, alive=alive)
    os.write(tell, b"x")
    os.waitpid(first, 0)


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]))
