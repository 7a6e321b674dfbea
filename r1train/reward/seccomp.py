"""The system-call filter of the sandbox, as a classic BPF program (Linux, x86_64 and aarch64)."""

import errno
import platform
import struct

from r1train.errors import EnvironmentProblem

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data
_NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW* flag
_AF_UNIX = 1
_X32_BIT = 0x40000000

# Numbers of system calls. denied: new name spaces and mounts, tracing and memory of other processes, kernel modules,
# keys, and memory that no process owns (memfd, SysV and POSIX queues), which the memory limit would not see.
_ARCHITECTURES: dict[str, tuple[int, dict[str, int], tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        {"clone": 56, "clone3": 435, "socket": 41},
        (272, 308, 165, 166, 155, 161, 101, 310, 311, 321, 298, 323, 250, 248, 249, 246, 175, 313, 176, 304, 303, 169)
        + (167, 163, 179, 164, 319, 29, 68, 240),
    ),
    "aarch64": (
        0xC00000B7,
        {"clone": 220, "clone3": 435, "socket": 198},
        (97, 268, 40, 39, 41, 51, 117, 270, 271, 280, 241, 282, 219, 217, 218, 104, 105, 273, 106, 265, 264, 142)
        + (224, 89, 60, 170, 279, 194, 186, 180),
    ),
}
# The same on both: io_uring, open_tree to fspick, pidfd_getfd, mount_setattr, memfd_secret.
_DENIED_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447)


def filter_program(machine: str | None = None) -> bytes:
    """struct sock_filter[] that refuses (EPERM) what a test has no use for; other architectures' calls kill.

    Sockets other than AF_UNIX are refused as a whole: a network name space does not cover AF_VSOCK, through which a
    virtual machine talks to its host. clone3 hides its flags in memory, so it is absent (ENOSYS, libc falls back).
    Raises EnvironmentProblem on other machines than x86_64 and aarch64.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        known = " or ".join(_ARCHITECTURES)
        raise EnvironmentProblem(f"the code sandbox has no system-call filter for {machine}. Fix: grade on {known}")
    arch, numbers, denied = _ARCHITECTURES[machine]
    refuse = _ERRNO | errno.EPERM
    program = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    for number in (*denied, *_DENIED_EVERYWHERE):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    program += [(_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, compare in (("clone", (_ANY_BIT, 0, 1, _NEW_NAMESPACE)), ("socket", (_EQUAL, 1, 0, _AF_UNIX))):
        program += [(_EQUAL, 0, 4, numbers[name]), (_LOAD, 0, 0, _ARGUMENT_0), compare]
        program += [(_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
