"""A throw-away Slurm cluster on this host for the tests: munged, slurmctld and two slurmd, without systemd.

Every daemon runs under a temporary folder with its own key, socket and ports, as a child of the test process, and is
ended through its process handle. Where this process may make namespaces (root), each node has its own host name, so
that the names in SLURM_JOB_NODELIST resolve; elsewhere all nodes share the host's name and MASTER_ADDR stands in.
"""

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NODES = ("sim1", "sim2")
DAEMON_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
START_TIMEOUT_S = 120.0
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "STOPPED", "SUSPENDED")
# inside its namespace a node mounts its own /etc/hosts and takes its own name before slurmd starts
ENTER_NODE = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'

SLURM_CONF = """\
ClusterName=r1train
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
InactiveLimit=0
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2
PropagateResourceLimits=NONE
FirstJobId={first_job}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range that outgoing connections take (32768 and up)."""
    ports: list[int] = []
    candidate = 10000 + os.getpid() * 97 % 9000
    while len(ports) < count:
        candidate += 1
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)) != 0:
                ports.append(candidate)
    return ports


def _namespaces_allowed() -> bool:
    command = ["unshare", "--uts", "--mount", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@dataclass
class SlurmCluster:
    """Two nodes of 4 claimed CPUs each. env: what sbatch, squeue and scontrol need to find this cluster."""

    folder: Path
    env: dict[str, str] = field(init=False)
    daemons: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)
    own_names: bool = field(init=False)

    def __post_init__(self) -> None:
        self.own_names = _namespaces_allowed()
        hidden = ("SLURM", "SBATCH", "R1TRAIN", "MASTER_", "PYTEST")  # a job must not see the settings of this session
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        self.env |= {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": DAEMON_PATH}
        if not self.own_names:
            self.env["MASTER_ADDR"] = "127.0.0.1"

    def start(self) -> None:
        """Returns when both nodes are idle."""
        self._write_config()
        munge = ["munged", "--foreground", "--force", "--num-threads=2", f"--key-file={self.folder}/munge.key"]
        munge += [f"--{name}={self.folder}/munge.{end}" for name, end in (("socket", "sock"), ("pid-file", "pid"))]
        munge += [f"--{name}={self.folder}/munge.{end}" for name, end in (("log-file", "log"), ("seed-file", "seed"))]
        self._spawn("munged", munge)
        self.wait_for("munged's socket", (self.folder / "munge.sock").exists)
        self._spawn("slurmctld", ["slurmctld", "-D", "-i"])
        for name in NODES:
            slurmd = ["slurmd", "-D", "-N", name]
            if self.own_names:
                enter = ["unshare", "--uts", "--mount", "bash", "-c", ENTER_NODE, "enter"]
                slurmd = [*enter, name, str(self.folder / "hosts"), *slurmd]
            self._spawn(name, slurmd)
        self.wait_for("both nodes to be idle", lambda: self.idle_nodes() == list(NODES))

    def stop(self) -> None:
        """Cancels the jobs (their step daemons outlive slurmd), then ends what start() started, newest first."""
        jobs = self._try("squeue", "--noheader", "--format=%A").split()
        if jobs:
            self._try("scancel", *jobs)
            deadline = time.monotonic() + 15
            while self._try("squeue", "--noheader", "--format=%A").split() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, cwd: Path | None = None, **env: str) -> str:
        """Standard output of a command that has to succeed; env adds to the cluster's."""
        result = subprocess.run(command, env=self.env | env, cwd=cwd, capture_output=True, text=True, timeout=180)
        assert result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        return result.stdout.strip()

    def idle_nodes(self) -> list[str]:
        return sorted(self._try("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split())

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`, e.g. JobState, ExitCode, Restarts."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job_id)))

    def wait(self, job_id: str, *, timeout_s: float) -> dict[str, str]:
        """The job's fields once it has ended; fails with its last output lines when it takes longer."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["JobState"] in UNFINISHED:
            if time.monotonic() > deadline:
                pytest.fail(f"job {job_id} is still {job['JobState']} after {timeout_s} s\n{output_of(job)}")
            time.sleep(0.3)
        return job

    def _try(self, *command: str) -> str:
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=180)
        return result.stdout if result.returncode == 0 else ""

    def _spawn(self, name: str, command: list[str]) -> None:
        # setpriv: the daemon ends with this process even where stop() never runs
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Fails with the daemons' last log lines when the condition is not true within START_TIMEOUT_S."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.[lo]*"))]
                pytest.fail(f"waited {START_TIMEOUT_S} s for {what}\n" + "\n".join(logs))
            time.sleep(0.1)

    def _write_config(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        host = socket.gethostname().split(".")[0]
        controller_port, *node_ports = _free_ports(1 + len(NODES))
        lines, hosts = [], [f"127.0.0.1 localhost {host}"]
        for index, (name, port) in enumerate(zip(NODES, node_ports, strict=True), start=11):
            hostname = name if self.own_names else host
            where = f"NodeName={name} NodeHostname={hostname} NodeAddr=127.0.0.{index} Port={port}"
            lines.append(f"{where} CPUs=4 RealMemory=16000 State=UNKNOWN")
            hosts.append(f"127.0.0.{index} {name}")
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host,
                user=getpass.getuser(),
                folder=self.folder,
                # Jobs take their port from their number, and clusters of two test workers share the machine.
                first_job=1 + os.getpid() * 97 % 9000,
                controller_port=controller_port,
                nodes="\n".join(lines),
                names=",".join(NODES),
            )
        )


def output_of(job: dict[str, str]) -> str:
    """The last lines of a job's standard output."""
    path = Path(job["StdOut"])
    return path.read_text()[-4000:] if path.exists() else f"{path}: no output"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A running cluster, shared by the tests of one file; only tests marked slurm may ask for it."""
    started = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
