"""A real Slurm of three nodes on this machine: munge, slurmctld and three slurmd, with four fake GPUs a node.

The nodes are processes with separate host names, /etc/hosts and mounts (Linux namespaces) and one network. Their
GPUs are device files that nothing opens: `MINI_R1_ACCELERATOR=cpu` makes them slots on the CPU. No systemd, no
accounting database; everything is in one folder, and gone with the last process.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mini_r1.machine.lifeline import Lifeline

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NODES, GPUS = ("n1", "n2", "n3"), 4
"""Slurm uses n3 last, so jobs that run at the same time on the others leave it free."""
APART = ("--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
"""A node has separate mounts, name and processes, which all end with its first process."""
START_S = 60
GRACE_S = 60
"""GraceTime of the partition `gpu`."""
KILL_WAIT_S = 30
"""Between SIGTERM and SIGKILL; Slurm's default."""
NODE = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount --bind "$3" "$4"
exec slurmd -D -f "$5" -N "$1"
"""
CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
EnforcePartLimits=ALL
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
MinJobAge=3600
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
NodeName=DEFAULT CPUs=128 CoresPerSocket=128 RealMemory=2000000 Gres={gres}
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.1.1 Port={port1}
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.1.2 Port={port2}
NodeName=n3 NodeHostname=n3 NodeAddr=127.0.1.3 Port={port3} Weight=9
PartitionName=gpu   Nodes=ALL Default=YES PriorityTier=1 MaxTime=24:00:00 GraceTime={grace}
PartitionName=abrupt Nodes=ALL PriorityTier=1 MaxTime=24:00:00 GraceTime=0
PartitionName=prio  Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def why_none() -> str | None:
    """Why this machine cannot have one; None if it can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: `apt-get install slurmctld slurmd slurm-client munge` (Debian)"
    if os.geteuid() != 0:
        return "no Slurm without root: its daemons create namespaces"
    probe = ["unshare", *APART, "sh", "-c", "hostname n1 && mount --bind /etc/hosts /etc/hosts"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=30)
    return None if done.returncode == 0 else f"namespaces are not permitted: {done.stderr.strip()}"


class Slurm:
    """A running cluster.

    Args:
        folder: everything is in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "node-disk"
        """A path where each node has a separate disk."""
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}",
        }  # fmt: skip
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons and wait until all nodes are idle."""
        for name in ("munge", "state", "dev", "node-disk"):
            (self.folder / name).mkdir()
        ports = iter(_free_ports(4))
        # The kit derives a port from a job's number, and all clusters of this machine share one network.
        conf = CONF.format(
            host=socket.gethostname(), folder=self.folder, first_job=1000 + secrets.randbelow(1_000_000),
            port=next(ports), port1=next(ports), port2=next(ports), port3=next(ports),
            gres=f"gpu:h100:{GPUS}", grace=GRACE_S, kill_wait=KILL_WAIT_S,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(conf)
        device_files = [self.folder / "dev" / f"nvidia{index}" for index in range(GPUS)]
        for index, path in enumerate(device_files):
            os.mknod(path, 0o600 | 0o020000, os.makedev(195, index))
        files = f"File={self.folder}/dev/nvidia[0-{GPUS - 1}] Flags=nvidia_gpu_env"
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-3] Name=gpu Type=h100 {files}\n")
        (self.folder / "cgroup.conf").write_text("ConstrainCores=no\n")
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 n1\n127.0.1.2 n2\n127.0.1.3 n3\n")
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        munge = [f"--{name}-file={self.folder}/munge/{name}" for name in ("key", "log", "pid", "seed")]
        self._daemon("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge/socket", *munge)
        self._until(lambda: (self.folder / "munge" / "socket").exists(), "munge does not answer")
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self.folder / "slurm.conf")
        for name in NODES:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start a node's daemon, and wait until jobs can run there."""
        own = self.folder / f"disk-of-{name}"
        own.mkdir(exist_ok=True)
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        where = (name, self.folder / "hosts", own, self.disk, self.folder / "slurm.conf")
        self._daemon(name, "unshare", *APART, "sh", "-c", NODE, "sh", *where)
        self._until(lambda: self.node_state(name) == "IDLE", f"node {name} does not come up")

    def crash_node(self, name: str) -> None:
        """Kill all that runs on a node, daemon first, and tell the controller what its timeout would tell it."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=crashed")

    def preempt(self, node: str) -> None:
        """Take a whole node from all jobs there, for a job of higher priority that ends at once."""
        where = ("--partition=prio", f"--nodelist={node}", "--exclusive", "--output=/dev/null")
        self.run("sbatch", "--wait", *where, "--wrap=true")

    def stop(self) -> None:
        """Kill all daemons and what they have started."""
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()

    def run(self, *command: str | Path, cwd: Path | None = None, **environment: str) -> str:
        """Run one of Slurm's commands to its end; what it printed.

        Raises:
            AssertionError: it failed.
        """
        done = self.try_to_run(*command, cwd=cwd, **environment)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def try_to_run(
        self, *command: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands; it may fail."""
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=cwd,
            env={**self.environment, **environment},
        )  # fmt: skip

    def node_state(self, name: str) -> str:
        """IDLE, ALLOCATED, MIXED, DOWN, ..."""
        return _field(self.try_to_run("scontrol", "show", "node", name, "--oneliner").stdout, "State")

    def log(self, name: str) -> str:
        """The last lines of a daemon's log."""
        with suppress(OSError):
            return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-10:])
        return ""

    def _daemon(self, name: str, *command: str | Path) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**self.environment, "TMPDIR": "/tmp"}, start_new_session=True,
                # However the tests end, no daemon outlives them.
                preexec_fn=Lifeline(os.getpid()),
            )  # fmt: skip

    def _until(self, done: Callable[[], bool], sentence: str) -> None:
        deadline = time.monotonic() + START_S
        while not done():
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))
                raise AssertionError(f"{sentence} (ended: {ended})\n{logs}\n{self.log('slurmctld')}")
            time.sleep(0.1)


GOES_ON = ("PENDING", "RUNNING", "SIGNALING", "COMPLETING", "SUSPENDED", "REQUEUED", "PREEMPTED")
"""States of a job that is not over. SIGNALING is one for the moment in which Slurm sends it a signal."""


class Job:
    """A job of the cluster.

    Args:
        slurm: the cluster.
        number: its id; a task of an array is "7_2".
        log: its output.
    """

    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self._slurm = slurm
        self.number = number
        self.log = log

    @property
    def said(self) -> str:
        """Its output so far, of all attempts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def show(self, field: str) -> str:
        """A field of `scontrol show job`: JobState, Restarts, ExitCode, Reason, ..."""
        return _field(self._slurm.run("scontrol", "show", "job", self.number, "--oneliner"), field)

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ..."""
        return self.show("JobState")

    @property
    def restarts(self) -> int:
        """Number of restarts."""
        return int(self.show("Restarts"))

    def wait_for(self, done: Callable[[], bool], timeout_s: float = 600) -> None:
        """Wait until something has happened; the job must not end before."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, f"not there after {timeout_s:g} s: {self}"
            assert (state := self.state) in GOES_ON, f"{state}: {self}"
            time.sleep(0.2)

    def wait(self, timeout_s: float = 600) -> str:
        """Wait for its end and return its state."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state) in GOES_ON:
            assert time.monotonic() < deadline, f"not over after {timeout_s:g} s: {self}"
            time.sleep(0.3)
        return state

    @property
    def exit_code(self) -> int:
        """Exit code of the batch script."""
        return int(self.show("ExitCode").partition(":")[0])

    def __str__(self) -> str:
        shown = self._slurm.try_to_run("scontrol", "show", "job", self.number, "--oneliner").stdout
        said = "\n".join(self.said.splitlines()[-60:])
        return f"{shown}\n{said}\n--- slurmctld\n{self._slurm.log('slurmctld')}"


@contextmanager
def a_cluster(folder: Path) -> Iterator[Slurm]:
    """A cluster until the `with` ends."""
    with ExitStack() as stack:
        slurm = Slurm(folder)
        stack.callback(slurm.stop)
        slurm.start()
        yield slurm


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _field(line: str, name: str) -> str:
    return next((word.partition("=")[2] for word in line.split() if word.startswith(f"{name}=")), "")
