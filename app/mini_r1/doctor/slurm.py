"""Slurm as a login node sees it: the controller answers, the partition has GPUs, the batch script would be taken.

Nothing is submitted: `sbatch --test-only` asks the controller for a job that it then forgets. The forms that are read
here were seen of Slurm 22.05.8.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mini_r1.doctor.site_file import Site
from mini_r1.findings import Finding, fail, ok, skip, worst
from mini_r1.recipe.keys import did_you_mean

PROGRAMS: Final = ("sbatch", "srun", "scontrol", "sinfo")
FORMAT: Final = "%P|%a|%l|%D|%G|%T"
"""sinfo: partition (the default one with a `*`), up or not, time limit, nodes, their GRES, their state. A line for each
kind of node."""
NOT_TAKING: Final = ("down", "drain", "fail", "inval", "unknown", "error", "future", "no_respond")
"""How a state begins in which a node takes no job. A `*` behind any state: the node does not answer."""
_GPUS: Final = re.compile(r"(?:^|,)gpu(?::(?P<kind>[^:,()]+|\(null\)))?:(?P<count>\d+)")
_NO_CONTROLLER: Final = ("Unable to contact", "authentication error", "configuration source", "Problem talking to")
"""In Slurm's words where the controller, munge or the database is at fault."""
_NO_SUCH_NODES: Final = "Requested node configuration is not available"


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of a partition that are alike: a line of sinfo."""

    partition: str
    default: bool
    available: str
    limit: str
    nodes: int
    gpus: int
    gpu_kind: str
    state: str

    @property
    def takes_jobs(self) -> bool:
        """Whether they are in service, free or not."""
        return not self.state.startswith(NOT_TAKING) and not self.state.endswith("*")


def scheduler(site: Site) -> Finding:
    """Slurm's programs are here, and its controller answers."""
    missing = [name for name in PROGRAMS if site.program(name) is None]
    if missing:
        return fail(
            f"not on the PATH: {', '.join(missing)}",
            "run this on a login node of the cluster; some have Slurm in a module (module load slurm)",
            "node",
        )
    version = site.ask("sbatch", "--version")
    ping = site.ask("scontrol", "ping") if version.code == 0 else version  # without its configuration neither answers
    if not re.search(r"\bis UP\b", ping.out):
        which = "; is SLURM_CONF, which is set, the right file?" if site.environment.get("SLURM_CONF") else ""
        return fail(
            f"Slurm's controller does not answer: {ping.words}",
            f"try again in some minutes, then ask the cluster's administrator{which}",
            "node",
        )
    return ok(f"{version.out.strip()}; {ping.words}")


def partition(site: Site) -> Finding:
    """Each partition that the job may go to is there, open, and has nodes with GPUs in service."""
    answer, kinds = _kinds(site)
    if answer is not None:
        return answer
    names, source = _names(site, kinds)
    if not names:
        return fail(
            "SBATCH_PARTITION is not set, and this Slurm has no default partition",
            f"set it in the site file to one of {', '.join(_all(kinds))}",
            "recipe",
        )
    return worst(_partition(site, name, source, kinds) for name in names)


def _kinds(site: Site) -> tuple[Finding | None, list[NodeKind]]:
    """Every kind of node of every partition; or what is wrong."""
    answer = site.ask("sinfo", "--all", "--noheader", "--format", FORMAT)
    if answer.code != 0:
        return fail(f"sinfo: {answer.words}", "ask the cluster's administrator", "node"), []
    kinds = [kind for line in answer.out.splitlines() if (kind := _kind(line)) is not None]
    return (None, kinds) if kinds else (fail("sinfo tells of no partition", "another cluster?", "node"), [])


def _kind(line: str) -> NodeKind | None:
    fields = [field.strip() for field in line.split("|")]
    if len(fields) != 6 or not fields[3].isdigit():
        return None
    name, available, limit, nodes, gres, state = fields
    gpus = list(_GPUS.finditer(gres))
    types = "+".join(dict.fromkeys(found["kind"] for found in gpus if found["kind"] not in (None, "(null)")))
    count = sum(int(found["count"]) for found in gpus)
    return NodeKind(name.rstrip("*"), name.endswith("*"), available, limit, int(nodes), count, types, state)


def _all(kinds: list[NodeKind]) -> list[str]:
    return list(dict.fromkeys(kind.partition for kind in kinds))


def names_of_partitions(site: Site) -> list[str]:
    """Return the partitions that the job may go to; none where Slurm does not say."""
    return _names(site, _kinds(site)[1])[0]


def _names(site: Site, kinds: list[NodeKind]) -> tuple[list[str], str]:
    """The partitions that the job may go to (of several, the one that is free first), and where that comes from."""
    named = site.environment.get("SBATCH_PARTITION")
    if named:
        return named.split(","), ""
    directive = directives(script_text(site)).get("partition")
    if directive:
        return directive.split(","), f" (of {site.script})"
    return _all([kind for kind in kinds if kind.default]), " (the cluster's default)"


def _partition(site: Site, name: str, source: str, kinds: list[NodeKind]) -> Finding:
    own = [kind for kind in kinds if kind.partition == name]
    if not own:
        there = _all(kinds)
        return fail(
            f"there is no partition {name}{source}{did_you_mean(name, there)}",
            f"set SBATCH_PARTITION in the site file to one of {', '.join(there)}",
            "recipe",
        )
    available, limit = own[0].available, own[0].limit
    if available != "up":
        return fail(f"{name}{source} is {available}", "wait until it is up, or set SBATCH_PARTITION to another", "node")
    found = f"{name}{source} is up, {_of_nodes(own)}, time limit {limit}"
    with_gpus = [kind for kind in own if kind.gpus]
    if not with_gpus:
        if site.environment.get("MINI_R1_ACCELERATOR") == "cpu":
            return ok(found)
        others = _all([kind for kind in kinds if kind.gpus and kind.available == "up"])
        return fail(
            f"{found}: no GPUs (GRES) there",
            f"set SBATCH_PARTITION to one of {', '.join(others)}" if others else "no other partition has any either",
            "recipe",
        )
    if not any(kind.takes_jobs for kind in with_gpus):
        return fail(
            f"{found}: {_out_of_service(own)}",
            "wait for the administrator (sinfo -R says why), or go elsewhere",
            "node",
        )
    words = _out_of_service(own)
    return ok(f"{found}{f'; {words}' if words else ''}")


def _of_nodes(kinds: list[NodeKind]) -> str:
    """`2 nodes with 4 GPUs (h100), 1 node without`, whatever their states."""
    counts: dict[tuple[int, str], int] = {}
    for kind in kinds:
        counts[kind.gpus, kind.gpu_kind] = counts.get((kind.gpus, kind.gpu_kind), 0) + kind.nodes
    parts = []
    for (gpus, gpu_kind), nodes in sorted(counts.items(), reverse=True):
        what = f"{gpus} GPU{'s' if gpus != 1 else ''}{f' ({gpu_kind})' if gpu_kind else ''}" if gpus else ""
        parts.append(f"{nodes} node{'s' if nodes != 1 else ''} {f'with {what} each' if what else 'without GPUs'}")
    return ", ".join(parts)


def _out_of_service(kinds: list[NodeKind]) -> str:
    away: dict[str, int] = {}
    for kind in kinds:
        if not kind.takes_jobs:
            away[kind.state] = away.get(kind.state, 0) + kind.nodes
    return f"out of service: {', '.join(f'{nodes} {state}' for state, nodes in away.items())}" if away else ""


def submission(site: Site) -> Finding:
    """Slurm would take the batch script, with this shell's partition, account and QoS."""
    if not (site.folder / site.script).is_file():
        return skip(f"there is no {site.script} here: run this in the kit's folder, or name a script with --script")
    windows = _with_windows_line_ends(site)
    if windows:
        return fail(
            f"{', '.join(windows)}: Windows line ends (CRLF), which sbatch refuses",
            f"sed -i 's/\\r$//' {' '.join(windows)}",
            "recipe",
        )
    answer = site.ask("sbatch", "--test-only", str(site.script))
    if answer.code == 0:
        silent = [finding for finding in (_time(site), _log_folder(site)) if finding is not None]
        return worst([ok(f"Slurm would take {site.script}: {answer.words}"), *silent])
    detail = f"Slurm would not take {site.script}: {answer.words}"
    if answer.code is None or any(words in answer.words for words in _NO_CONTROLLER):
        return fail(detail, "try again in some minutes, then ask the cluster's administrator", "node")
    if _NO_SUCH_NODES in answer.words:
        return _no_such_nodes(site, detail)
    return fail(detail, "correct the site file (SBATCH_...) or the script's #SBATCH lines", "recipe")


def _no_such_nodes(site: Site, detail: str) -> Finding:
    """--test-only says it of nodes that do not exist and of nodes that are drained, which a job would wait for."""
    _, kinds = _kinds(site)
    names, _ = _names(site, kinds)
    own = [kind for kind in kinds if kind.partition in names]
    nodes, gpus = wanted(site)
    fitting = [kind for kind in own if kind.gpus >= gpus]
    if sum(kind.nodes for kind in fitting if kind.takes_jobs) < nodes <= sum(kind.nodes for kind in fitting):
        return fail(
            f"{detail}; {_out_of_service(own)}, which are not counted",
            "sinfo -R says why; the job would wait for them",
            "node",
        )
    return fail(
        f"{detail}; there: {_of_nodes(own)}" if own else detail,
        "ask for what a node of the partition has: GPUs, CPUs and memory (sinfo -o '%P %D %c %m %G'), or name another "
        "partition",
        "recipe",
    )


def wanted(site: Site) -> tuple[int, int]:
    """Return nodes, and GPUs of each, that the script asks for; what is not written as a number is 1."""
    given = directives(script_text(site))
    nodes = given.get("nodes", "").partition("-")[0]
    gpus = (site.environment.get("SBATCH_GPUS_PER_NODE") or given.get("gpus-per-node", "")).rpartition(":")[2]
    return int(nodes) if nodes.isdecimal() else 1, int(gpus) if gpus.isdecimal() else 1


def _with_windows_line_ends(site: Site) -> list[str]:
    """The script, and the shell files beside it that it may read."""
    files = {site.script, *(site.script.parent / file.name for file in (site.folder / site.script).parent.glob("*.sh"))}
    return sorted(str(file) for file in files if b"\r\n" in (site.folder / file).read_bytes())


def _time(site: Site) -> Finding | None:
    """With Slurm's default (EnforcePartLimits=NO) a job of too much time is taken, and waits for ever."""
    asked = site.environment.get("SBATCH_TIMELIMIT") or directives(script_text(site)).get("time", "")
    wanted = seconds(asked)
    _, kinds = _kinds(site)
    names, _ = _names(site, kinds)
    limits = {kind.partition: kind.limit for kind in kinds if kind.partition in names}
    bounds = {name: seconds(limit) for name, limit in limits.items()}
    short = [limits[name] for name, bound in bounds.items() if wanted and bound is not None and bound < wanted]
    if short and len(short) == len(limits):
        return fail(
            f"{site.script} asks for {asked}, and {', '.join(limits)} allows {', '.join(short)}: the job would never "
            "start",
            f"sbatch --time={short[0]}, or the same in the script: a run goes on from its checkpoint in the next job",
            "recipe",
        )
    return None


def _log_folder(site: Site) -> Finding | None:
    """A job whose log has no folder fails without a word."""
    given = directives(script_text(site))
    if "chdir" in given:
        return None
    for key in ("output", "error"):
        name = site.environment.get(f"SBATCH_{key.upper()}") or given.get(key, "")
        folder = Path(name).parent
        if name and "%" not in str(folder) and not (site.folder / folder).is_dir():
            return fail(
                f"the job's log goes to {name}, and there is no folder {folder}: the job would fail without a word",
                f"mkdir -p {shlex.quote(str(folder))}",
                "recipe",
            )
    return None


def script_text(site: Site) -> str:
    """Return the batch script, or nothing where it cannot be read."""
    try:
        return (site.folder / site.script).read_text(errors="replace")
    except OSError:
        return ""


_SHORT: Final = {"N": "nodes", "t": "time", "p": "partition", "o": "output", "e": "error", "D": "chdir"}


def directives(script: str) -> dict[str, str]:
    """Those #SBATCH options of a script that have a value, by their long names. The first command ends them."""
    found: dict[str, str] = {}
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if not line.startswith("#SBATCH "):
            continue
        try:
            words = shlex.split(line.removeprefix("#SBATCH "), comments=True)
        except ValueError:  # a quote that is not closed: sbatch says so
            continue
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                found[name] = value if equals else following
            elif word[:1] == "-" and word[1:2] in _SHORT:
                found[_SHORT[word[1]]] = word[2:] or following
    return found


def seconds(time: str) -> int | None:
    """Of a time as Slurm writes it (m, m:s, h:m:s, d-h, d-h:m, d-h:m:s); None for no limit and for other words."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        return None
    days, *parts = match.groups()
    first, second, third = (int(part) if part else 0 for part in parts)
    if days is not None:
        return int(days) * 86_400 + first * 3600 + second * 60 + third
    return first * 60 + second if parts[2] is None else first * 3600 + second * 60 + third
