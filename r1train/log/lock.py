"""Locks on run folders: two runs never write into one folder, and a killed run leaves no lock behind."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from r1train.errors import RunInUse

_RETRY_S = 0.1
# What flock answers on file systems that have no locks (Lustre mounted without -o flock): nothing can be held there.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def hold(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the lock file `path` (flock, exclusive) within the block; the kernel releases it when this process ends.

    A holder that is about to end, as after a kill, is waited for, with one line on stderr. Raises RunInUse, which names
    the holder, when it still holds after wait_s seconds. The file stays and is reused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        deadline, told = time.monotonic() + wait_s, False
        while not _try(file.fileno()):
            holder = _holder(path)
            if time.monotonic() >= deadline:
                raise RunInUse(
                    f"{path} is held by {holder}: the same run is going on. Fix: wait for it, end it, or choose "
                    "another root; if that process is gone (its node crashed), delete the file"
                )
            if not told:
                print(f"waiting up to {wait_s:g} s for {holder}, which holds {path}", file=sys.stderr, flush=True)
                told = True
            time.sleep(_RETRY_S)
        file.truncate(0)
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        file.write(json.dumps(record) + "\n")
        file.flush()
        yield


def _try(descriptor: int) -> bool:
    """Whether this process holds the lock now, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _holder(path: Path) -> str:
    """Who wrote itself into the lock file; it may be doing so at this moment."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"process {record['pid']} on {record['host']} (since {record['since']})"
    except (ValueError, FileNotFoundError):
        return "another process"
