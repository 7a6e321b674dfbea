"""Processes that end together with their parent, so that no kill, not even SIGKILL of a parent, leaves an orphan.

The chain is: orchestrator (schedule.py) > torchrun (dist/torchrun.py) > one process per rank > its graders. A parent
that is killed cannot tell its children, so each child asks the kernel to: PR_SET_PDEATHSIG, Linux only. On other
systems the locks of log/lock.py still keep a second run out of a run folder that orphans write into.
"""

import ctypes
import os
import signal
import sys

PARENT = "R1TRAIN_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def child_environment() -> dict[str, str]:
    """This process's environment, for a child that calls end_with_parent().

    The kernel means the thread that starts the child: start it from one that lives as long as it is needed (main).
    """
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Be killed when the parent ends, where it started this process with child_environment() or is a torchrun.

    Elsewhere nothing happens: a stage that was started by hand may outlive its shell (nohup).
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != int(parent):
        # It ended before the kernel knew of our wish: another process has adopted us.
        os.kill(os.getpid(), signal.SIGKILL)
