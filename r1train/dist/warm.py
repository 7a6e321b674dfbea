"""Ranks forked from one warm process, so that the stages of a schedule on one CPU machine share their imports.

torchrun starts an interpreter per rank, and torch and megatron-core take each of them seconds to import. Here Python's
fork server imports them once, before any thread or process group exists, and every rank of every stage is its fork.
Killed processes leave no orphan: the server ends with its starter, the ranks end with the server (dist/parent.py).
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from r1train.dist.parent import PARENT

# Imported first: by itself Python's server ends with its starter only once no rank is left that holds its pipe.
WITH_STARTER = "r1train.dist.with_starter"
# After one rank failed, the others have so long to meet the broken connection and say so.
GRACE_S = 10.0


class WarmRanks:
    """Starts `python -m <module>` on some ranks of this machine, in forks of a server with everything imported."""

    def __init__(self, preload: str, environment: dict[str, str]):
        """preload: the module that imports what ranks need; environment: of the server, and so of every rank.

        The server starts now and imports in the background. One per process: it is Python's own.
        """
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([WITH_STARTER, preload])
        before = dict(os.environ)
        os.environ.update({**environment, PARENT: str(os.getpid())})
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(self, module: str, arguments: list[str], *, world_size: int) -> "RunningRanks":
        """The ranks of one run, with torchrun's variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT."""
        reader, writer = self._context.Pipe(duplex=False)
        shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        processes = []
        for rank in range(world_size):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = self._context.Process(target=_be_rank, args=(writer, environment, module, arguments))
            process.start()
            processes.append(process)
        writer.close()
        return RunningRanks(reader, processes)


class RunningRanks:
    """The ranks of one run and what they print, stdout and stderr of all together."""

    def __init__(self, reader: Connection, processes: list[BaseProcess]):
        self._reader, self._processes = reader, processes
        self._watcher = threading.Thread(target=self._watch, name="warm-ranks", daemon=True)
        self._watcher.start()

    def lines(self) -> Iterator[str]:
        """What they print, until all have ended."""
        with os.fdopen(os.dup(self._reader.fileno()), encoding="utf-8", errors="replace") as output:
            yield from output
        self._reader.close()

    def wait(self) -> int:
        """0, or the exit code of a rank that failed (-N: killed by signal N)."""
        self._watcher.join()
        return next((process.exitcode for process in self._processes if process.exitcode), 0)

    def stop(self) -> None:
        """Ask every rank to end, as torchrun does: stages save their state first."""
        for process in self._processes:
            process.terminate()
        self.wait()

    def _watch(self) -> None:
        """Until every rank ended; what is left some time after one failed is killed: it waits for that one."""
        running: dict[int, BaseProcess] = {process.sentinel: process for process in self._processes}
        failed = False
        while running:
            ended = wait(list(running), timeout=GRACE_S if failed else None)
            for sentinel in ended:
                process = running.pop(sentinel)
                process.join()
                failed |= process.exitcode != 0
            if not ended:
                for process in running.values():
                    process.kill()


def _be_rank(output: Connection, environment: dict[str, str], module: str, arguments: list[str]) -> None:
    """Body of a forked rank: as if started by `python -m module arguments`, printing into `output`."""
    # A Ctrl-C in the terminal is for the orchestrator, which asks the ranks to save.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), stream.fileno())
    output.close()
    os.environ.update({**environment, PARENT: str(os.getppid())})
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
