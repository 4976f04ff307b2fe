"""Slurm as a login node sees it: the partition, the batch script, the time that a job gets to stop.

Nothing is submitted: `sbatch --test-only` asks about a job that Slurm then forgets. The output is read in the forms of
Slurm 22.05.8.
"""

import math
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from mini_r1.doctor.case import Case, run_program
from mini_r1.machine.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.plan.planner import Plan
from mini_r1.plan.timing import describe_stop
from mini_r1.recipe.keys import did_you_mean

TIMEOUT_S: Final = 20.0
"""Seconds for a program's answer: Slurm 22.05's sbatch gives up on an absent controller after 18."""
FORMAT: Final = "%P|%a|%l|%D|%G|%T"
"""sinfo: partition (the default one with a `*`), availability, time limit, nodes, their GRES, their state."""
OUT_OF_SERVICE: Final = ("down", "drain", "fail", "inval", "unknown", "error", "future", "no_respond")
"""Beginnings of the states in which a node takes no job. A `*` after any state: the node does not answer."""
NO_PREEMPTION: Final = ("preempt/none", "(null)")
"""Values of PreemptType."""
_SINFO_ROW: Final = re.compile(r"^ *(.+?)(\*?) *\| *(.*?) *\| *(.*?) *\| *(\d+) *\| *(.*?) *\| *(.*?) *$", re.MULTILINE)
_GPUS: Final = re.compile(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)")
_NO_CONTROLLER: Final = ("Unable to contact", "authentication error", "configuration source", "Problem talking to")
"""Parts of Slurm's messages where the controller, munge or the database does not answer."""
_NO_SUCH_NODES: Final = "Requested node configuration is not available"
_PROGRAM: Final = re.compile(r"^(?:sbatch|sinfo|scontrol): (?:error: |fatal: )?")
_LONGEST: Final = 600
"""Characters of a program's output that are shown."""
_SHORT_OPTIONS: Final = {"N": "nodes", "t": "time", "p": "partition"}


class ProgramOutput(NamedTuple):
    """A program's exit code (None: no answer in time), its standard output, and both streams on one line."""

    code: int | None
    out: str
    text: str


class NodeGroup(NamedTuple):
    """Nodes of a partition that are alike: one line of sinfo."""

    partition: str
    is_default: bool
    available: str
    limit: str
    nodes: int
    gres: str
    state: str

    @property
    def gpus(self) -> int:
        return sum(map(int, _GPUS.findall(self.gres)))

    @property
    def in_service(self) -> bool:
        """Whether the nodes take jobs, now or later."""
        return not self.state.startswith(OUT_OF_SERVICE) and not self.state.endswith("*")

    def __str__(self) -> str:
        return f"{self.nodes} x {self.gres} {self.state}"


@dataclass
class LoginNode:
    """A shell on a login node, and the batch script to queue from it."""

    shell: Mapping[str, str]  # its environment, with the site file's exports
    folder: Path  # the current one, in which jobs run
    kit: Path  # the folder with the batch scripts: the current one, or MINI_R1_HOME
    script: Path  # as it was named
    case: Case  # its environment lacks what the check of the site file reports
    plan: Plan | None = None  # on the nodes and GPUs that the script asks for

    @property
    def environment(self) -> Mapping[str, str]:
        return self.case.environment

    def ask(self, *command: str) -> ProgramOutput:
        """Run a program in this shell and return its answer; exit code 127 if it cannot be started."""
        try:
            done = run_program(command, self.environment, TIMEOUT_S, self.folder)
        except subprocess.TimeoutExpired:
            return ProgramOutput(None, "", f"no answer within {TIMEOUT_S:.0f} s")
        except OSError as error:
            return ProgramOutput(127, "", error.strerror or str(error))
        lines = (_PROGRAM.sub("", line.strip()) for line in (done.stderr + done.stdout).splitlines())
        text = "; ".join(dict.fromkeys(line for line in lines if line))
        return ProgramOutput(done.returncode, done.stdout, text[:_LONGEST] or f"exit code {done.returncode}")

    @cached_property
    def directives(self) -> dict[str, str]:
        """The script's #SBATCH options; none if it cannot be read."""
        try:
            return read_directives((self.folder / self.script).read_text(errors="replace"))
        except OSError:
            return {}

    @cached_property
    def sinfo(self) -> ProgramOutput:
        return self.ask("sinfo", "--all", "--noheader", "--format", FORMAT)

    @cached_property
    def node_groups(self) -> list[NodeGroup]:
        rows = re.findall(_SINFO_ROW, self.sinfo.out)
        return [
            NodeGroup(name, bool(default), available, limit, int(nodes), gres, state)
            for name, default, available, limit, nodes, gres, state in rows
        ]

    @cached_property
    def partitions(self) -> list[str]:
        """The partitions that the job may go to: the shell's, else the script's, else the cluster's default."""
        named = self.environment.get("SBATCH_PARTITION") or self.directives.get("partition")
        return named.split(",") if named else _partitions(group for group in self.node_groups if group.is_default)

    @property
    def requested(self) -> tuple[int, int]:
        """Nodes, and GPUs of each, that the script asks for; 1 where no number is written."""
        nodes = self.directives.get("nodes", "").partition("-")[0]
        gpus = self.environment.get("SBATCH_GPUS_PER_NODE") or self.directives.get("gpus-per-node", "")
        count = gpus.rpartition(":")[2]
        return int(nodes) if nodes.isdecimal() else 1, int(count) if count.isdecimal() else 1


def read_directives(script: str) -> dict[str, str]:
    """Return the #SBATCH options that have a value, by their long names. As for sbatch, the first command ends them."""
    found: dict[str, str] = {}
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if not line.startswith("#SBATCH "):
            continue
        try:
            words = shlex.split(line.removeprefix("#SBATCH "), comments=True)
        except ValueError:  # an open quote, which sbatch reports
            continue
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                found[name] = value if equals else following
            elif word[:1] == "-" and word[1:2] in _SHORT_OPTIONS:
                found[_SHORT_OPTIONS[word[1]]] = word[2:] or following
    return found


def read_seconds(time: str) -> int | None:
    """Return the seconds of a Slurm time (m, m:s, h:m:s, d-h, d-h:m, d-h:m:s); None for no limit and other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        return None
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is None and parts[2] is None:
        return first * 60 + second
    return int(days or 0) * 86_400 + first * 3600 + second * 60 + third


# --- the checks ---


def partition(login: LoginNode) -> Finding:
    """Each partition that the job may go to exists, is up, allows the script's time, and has GPUs in service."""
    if login.sinfo.code != 0:
        fix = "run this on a login node (some have Slurm in a module), or try again when the controller answers"
        return fail(f"sinfo: {login.sinfo.text}", fix, "node")
    if not login.partitions:
        there = ", ".join(_partitions(login.node_groups)) or "none"
        fix = f"set it in the site file; partitions here: {there}"
        return fail("SBATCH_PARTITION is not set, and this Slurm has no default partition", fix, "recipe")
    return worst([*(_check_partition(login, name) for name in login.partitions), *_check_time(login)])


def _check_partition(login: LoginNode, name: str) -> Finding:
    groups = [group for group in login.node_groups if group.partition == name]
    if not groups:
        there = _partitions(login.node_groups)
        fix = f"set SBATCH_PARTITION in the site file to one of {', '.join(there)}"
        return fail(f"there is no partition {name}{did_you_mean(name, there)}", fix, "recipe")
    if groups[0].available != "up":
        fix = "wait until it is up, or choose another SBATCH_PARTITION"
        return fail(f"{name} is {groups[0].available}", fix, "node")
    found = f"{name} is up, time limit {groups[0].limit}: {_format_groups(groups)}"
    on_cpu = login.environment.get("MINI_R1_ACCELERATOR") == "cpu"
    with_gpus = [group for group in groups if group.gpus or on_cpu]
    if not with_gpus:
        others = _partitions(group for group in login.node_groups if group.gpus and group.available == "up")
        return fail(f"{found}: no GPUs (GRES)", f"partitions with GPUs: {', '.join(others) or 'none'}", "recipe")
    if not any(group.in_service for group in with_gpus):
        return fail(f"{found}: out of service", "see `sinfo -R` for the reason, or choose another partition", "node")
    return ok(found)


def _check_time(login: LoginNode) -> Iterator[Finding]:
    """Slurm's default (EnforcePartLimits=NO) accepts a job of too much time, which then waits forever."""
    asked = login.environment.get("SBATCH_TIMELIMIT") or login.directives.get("time", "")
    seconds = read_seconds(asked)
    limits = {group.partition: group.limit for group in login.node_groups if group.partition in login.partitions}
    bounds = [read_seconds(limit) for limit in limits.values()]
    if seconds and bounds and all(bound is not None and bound < seconds for bound in bounds):
        allowed = f"{', '.join(limits)} allows {', '.join(limits.values())}"
        fix = f"`sbatch --time={next(iter(limits.values()))}`: the run resumes from its checkpoint in the next job"
        yield fail(f"{login.script} asks for {asked}, and {allowed}: the job would never start", fix, "recipe")


def submission(login: LoginNode) -> Finding:
    """Slurm would accept the batch script, with this shell's partition, account and QoS."""
    if not (login.folder / login.script).is_file():
        return skip(f"there is no {login.script} here: run this in the kit's folder, or name a script with --script")
    answer = login.ask("sbatch", "--test-only", str(login.script))
    if answer.code == 0:
        return ok(f"Slurm would accept {login.script}: {answer.text}")
    detail = f"Slurm would not accept {login.script}: {answer.text}"
    if answer.code is None or any(message in answer.text for message in _NO_CONTROLLER):
        return fail(detail, "try again in a few minutes, then ask the cluster's administrator", "node")
    if _NO_SUCH_NODES not in answer.text:
        return fail(detail, "correct the site file (SBATCH_...) or the script's #SBATCH lines", "recipe")
    # Slurm gives the same answer for nodes that do not exist and for nodes out of service, which a job would wait for.
    groups = [group for group in login.node_groups if group.partition in login.partitions]
    nodes, gpus = login.requested
    large_enough = [group for group in groups if group.gpus >= gpus]
    in_service = sum(group.nodes for group in large_enough if group.in_service)
    if in_service < nodes <= sum(group.nodes for group in large_enough):
        fix = "see `sinfo -R` for the reason; the job would wait for them"
        return fail(f"{detail}; nodes out of service are not counted: {_format_groups(groups)}", fix, "node")
    fix = "ask for GPUs, CPUs and memory that a node has (`sinfo -o '%P %D %c %m %G'`), or name another partition"
    return fail(f"{detail}; nodes: {_format_groups(groups)}", fix, "recipe")


def time_to_save(login: LoginNode) -> Finding:
    """A preemption, a scancel and the time limit leave the run time to save."""
    timing = login.plan.timing if login.plan else None
    if timing is None:
        return skip("the time of a save is not known: name a recipe whose model the plan knows")
    config = _scontrol(login, "config")
    if not config.get("KillWait", "").isdecimal():
        return skip("KillWait is not known: `scontrol show config` does not print it")
    times = _stop_times(login, config, math.ceil(timing.stop_s / 10) * 10)
    found = worst(warn(text, fix) if seconds < timing.stop_s else ok(text) for seconds, text, fix in times)
    detail = f"asked to stop, the run needs up to {describe_stop(timing)}; {found.detail}"
    if found.status == "warn":
        detail += ": a run that is killed before it has saved repeats the steps since its last checkpoint"
    return replace(found, detail=detail)


def _stop_times(login: LoginNode, config: dict[str, str], enough: int) -> Iterator[tuple[int, str, str]]:
    """Yield the seconds that a run gets to stop, what gives them, and how to get `enough`.

    After a scancel, by the notice before the time limit, and after a preemption.
    """
    kill_wait = int(config["KillWait"])
    fix = f"save more often (--set save_minutes=10), and ask the administrator for a KillWait of {enough} s"
    yield kill_wait, f"KillWait is {kill_wait} s, all the time that a scancel leaves", fix

    signal = login.environment.get("SBATCH_SIGNAL") or login.directives.get("signal", "")
    lead = signal.rpartition("@")[2]
    fix = f"write #SBATCH --signal=B:USR1@{max(600, enough)} into {login.script}"
    if lead.isdecimal():
        yield int(lead), f"the notice comes {lead} s before the time limit (--signal={signal})", fix
    else:
        yield kill_wait, f"{login.script} asks for no notice before its time limit", fix

    preempts = config.get("PreemptType", NO_PREEMPTION[0]) not in NO_PREEMPTION
    for name in login.partitions if preempts else ():
        fields = _scontrol(login, "partition", name, "--oneliner")
        grace, mode = fields.get("GraceTime", ""), fields.get("PreemptMode", "OFF")
        if mode == "OFF" or not grace.isdecimal():
            yield enough, f"jobs in {name} are not preempted", ""
            continue
        # After GraceTime comes a second TERM, which ends the run at once: KillWait adds nothing.
        source = f"its GraceTime is {grace} s" if int(grace) else "it has no GraceTime"
        text = f"jobs in {name} may be preempted ({mode}), and {source}"
        yield int(grace) or kill_wait, text, f"ask for a GraceTime of {enough} s in {name}"


def _scontrol(login: LoginNode, *what: str) -> dict[str, str]:
    """Return the fields that `scontrol show` prints; none if it fails."""
    answer = login.ask("scontrol", "show", *what)
    return dict(re.findall(r"(\w+)\s*=\s*(\S+)", answer.out)) if answer.code == 0 else {}


def _partitions(groups: Iterable[NodeGroup]) -> list[str]:
    return list(dict.fromkeys(group.partition for group in groups))


def _format_groups(groups: Iterable[NodeGroup]) -> str:
    return ", ".join(map(str, groups)) or "none"
