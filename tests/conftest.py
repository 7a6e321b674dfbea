"""Shared by all tests: a deterministic CPU environment, reasons for skips, and launchers of gloo processes."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from r1train.dist.parent import child_environment

REPO = Path(__file__).resolve().parent.parent
WARM = REPO / "tests" / "warm"
ENVIRONMENT = {
    "TORCH_COMPILE_DISABLE": "1",  # megatron-core's jit_fuser would compile on every fresh machine
    "OMP_NUM_THREADS": "1",  # sums in one order, and processes do not fight for two cores
    "MKL_NUM_THREADS": "1",
    "HYDRA_FULL_ERROR": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic GEMMs on a GPU
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # a test that needs the network is a defect
    "MPLBACKEND": "Agg",
}
for _key, _value in ENVIRONMENT.items():
    os.environ.setdefault(_key, _value)  # before any test module imports torch

GPU_MARKERS = {"gpu1": 1, "gpu2": 2, "gpu4": 4}
GRACE_S = 10.0  # torchrun passes SIGTERM on to its workers within this time


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; the reason says what is missing."""
    wanted = {marker for item in items for marker in GPU_MARKERS if item.get_closest_marker(marker)}
    devices = _cuda_devices() if wanted else 0  # torch is imported only where a collected test asks for it
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    has_slurm = shutil.which("slurmctld", path=search) is not None
    for item in items:
        for marker in wanted:
            if item.get_closest_marker(marker) and devices < GPU_MARKERS[marker]:
                reason = f"{marker}: needs {GPU_MARKERS[marker]} CUDA device(s), found {devices}"
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("slurm") and not has_slurm:
            reason = "slurm: slurmctld is not installed (apt-get install slurm-wlm slurm-client munge)"
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Finished:
    """What a launch left behind: exit code, and stdout and stderr of all its processes together."""

    returncode: int
    output: str


def _stop(launcher: subprocess.Popen) -> None:
    """End a launcher and the workers below it, and nothing else: SIGTERM, a grace period, SIGKILL.

    torchrun puts every worker into a session of its own, so killing the launcher's process group would leave orphans.
    """
    top = psutil.Process(launcher.pid)
    family = [*top.children(recursive=True), top]
    launcher.terminate()
    for process in psutil.wait_procs(family, timeout=GRACE_S)[1]:
        process.kill()  # psutil compares creation times, so a pid that was given to another process is safe
    launcher.wait()


def launch(script: Path | str, nproc: int, *args: object, timeout_s: float = 180.0, **env: str) -> Finished:
    """Run `script` in nproc processes through torchrun and wait; none of its processes outlives the call.

    args: passed to the script as strings. env: added to the environment. A run over timeout_s fails the test with the
    last lines of its output.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    launcher = subprocess.Popen(
        [*command, str(script), *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = launcher.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _stop(launcher)
        output, _ = launcher.communicate()
        pytest.fail(f"{script} on {nproc} processes took more than {timeout_s} s; its end:\n{output[-4000:]}")
    finally:
        if launcher.poll() is None:  # the test was interrupted
            _stop(launcher)
    return Finished(launcher.returncode, output)


class WarmLauncher:
    """launch() with ranks that are forked from a server with everything imported: seconds per process are saved."""

    def __init__(self, folder: Path):
        """folder: for what the ranks print. The server starts with the first launch, and again after a time-out."""
        self._output = folder / "output"
        self._server: subprocess.Popen | None = None

    def __call__(self, script: Path | str, nproc: int, *args: object, timeout_s: float = 180.0) -> Finished:
        """As launch(), without torchrun: the exit code is that of a rank that failed (-N: killed by signal N)."""
        if self._server is None:
            self._server = _start_server()
        order = {"arguments": [str(script), *map(str, args)], "nproc": nproc, "output": str(self._output)}
        self._output.write_text("")
        limit = threading.Timer(timeout_s, _stop, [self._server])
        limit.start()
        print(json.dumps(order), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        limit.cancel()
        output = self._output.read_text(encoding="utf-8")
        if not answer:
            limit.join()
            self.close()
            pytest.fail(f"{script} on {nproc} processes took more than {timeout_s} s; its end:\n{output[-4000:]}")
        return Finished(int(answer), output)

    def close(self) -> None:
        """End the server and every rank."""
        if self._server is not None:
            if self._server.poll() is None:
                _stop(self._server)
            self._server.stdin.close()
            self._server.stdout.close()
        self._server = None


def _start_server() -> subprocess.Popen:
    command = [sys.executable, WARM / "server.py", "r1train.stages.preload"]
    path = os.pathsep.join(filter(None, [str(WARM), str(REPO), os.environ.get("PYTHONPATH")]))
    # It ends with this process, however that ends, and its ranks with it.
    environment = {**child_environment(), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository root."""
    return REPO


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make) -> a folder that make(folder) has filled, once, also where several pytest workers ask for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = base / name
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "done").exists():
                make(folder)
                (folder / "done").touch()
        return folder

    return made


@pytest.fixture(scope="session")
def run_torchrun() -> Callable[..., Finished]:
    """launch() itself, for tests that expect a failure and look at exit code and output."""
    return launch


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., str]:
    """torchrun(script, nproc, *args, timeout_s=180, KEY="value") -> output; asserts exit code 0 of all processes."""

    return _successful(launch)


@pytest.fixture(scope="session")
def run_warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmLauncher]:
    """As run_torchrun, but the ranks are forks: run_warm(script, nproc, *args, timeout_s=180)."""
    launcher = WarmLauncher(tmp_path_factory.mktemp("warm"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def warm(run_warm: WarmLauncher) -> Callable[..., str]:
    """As torchrun, but the ranks are forks: warm(script, nproc, *args, timeout_s=180) -> output."""
    return _successful(run_warm)


def _successful(run: Callable[..., Finished]) -> Callable[..., str]:
    """The launcher's output where every process ends with exit code 0; anything else fails the test."""

    def checked(script: Path | str, nproc: int, *args: object, **options: object) -> str:
        finished = run(script, nproc, *args, **options)
        assert finished.returncode == 0, (
            f"{script} on {nproc} processes ended with {finished.returncode}:\n" + (finished.output[-8000:])
        )
        return finished.output

    return checked
