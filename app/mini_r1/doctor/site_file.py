"""What a login node is asked about: the shell after `source slurm/site.env`, the kit's folder, Slurm's programs.

The site file is the user's: its lines are exports, and this reads what they left in the environment. `site_file` looks
for the faults that would make every other check stumble.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mini_r1.doctor.case import Case
from mini_r1.findings import Finding, fail, ok, skip, worst
from mini_r1.machine.paths import hub_home
from mini_r1.plan.planner import Plan

RUNTIMES: Final = ("venv", "apptainer", "pyxis")
"""Values of MINI_R1_RUNTIME: how a job finds the kit on its nodes."""
SITE_FILE: Final = "slurm/site.env"
"""In the kit's folder. The job reads it again when it starts."""
TIMEOUT_S: Final = 20.0
"""Seconds for a program's answer: Slurm 22.05's sbatch gives up on a controller that is gone after 18."""
PREFIXES: Final = ("SBATCH_", "MINI_R1_", "HF_")
"""Of the variables that a site file sets."""
_SPEAKER: Final = re.compile(r"^(?:sbatch|srun|sinfo|scontrol): (?:error: |fatal: )?")
_WORDS: Final = 600
"""Characters of a program's words that are shown."""


class Answer(NamedTuple):
    """How a program ended."""

    code: int | None  # None: it did not end in time
    out: str
    words: str  # of both streams, on one line, for people


@dataclass(frozen=True, slots=True)
class Site:
    """A login node and the job that is to be queued from it.

    Args:
        environment: of the shell, as `mended` leaves it.
        folder: the current one, from which jobs are submitted and in which they run.
        kit: that with the batch scripts: the current one, or MINI_R1_HOME.
        script: the batch script, as it was named.
        case: the node and the recipe, for the checks that the doctor has for any node.
        raw: the environment as it was.
        plan: of the recipe on what the script asks for; None without a recipe.
    """

    environment: Mapping[str, str]
    folder: Path
    kit: Path
    script: Path
    case: Case
    raw: Mapping[str, str]
    plan: Plan | None = None

    @property
    def runtime(self) -> str | None:
        """One of RUNTIMES; None where the site file names none of them."""
        value = self.environment.get("MINI_R1_RUNTIME", "")
        return value if value in RUNTIMES else None

    @property
    def in_container(self) -> bool:
        """Whether jobs see only those paths of the node that are mounted."""
        return self.runtime in ("apptainer", "pyxis")

    def program(self, name: str) -> str | None:
        """Where a program is on the PATH of the shell."""
        return shutil.which(name, path=self.environment.get("PATH"))

    def ask(self, *command: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run a program with the shell's environment and wait for it; one that cannot be started has code 127."""
        try:
            done = subprocess.run(  # noqa: S603
                command,
                env={**self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as late:
            said = _text(late.stdout) + _text(late.stderr)
            return Answer(None, _text(late.stdout), _words(f"no answer within {timeout_s:.0f} s\n{said}"))
        except OSError as error:
            return Answer(127, "", error.strerror or str(error))
        out, err = _text(done.stdout), _text(done.stderr)
        return Answer(done.returncode, out, _words(err + out) or f"exit code {done.returncode}")


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def _words(text: str) -> str:
    """A program's lines as one, without `sbatch: error:` before each, and without lines of asterisks."""
    lines = []
    for line in text.splitlines():
        said = _SPEAKER.sub("", line.strip())
        if said and not said.startswith("*"):
            lines.append(said)
    words = "; ".join(dict.fromkeys(lines))
    return words if len(words) <= _WORDS else f"{words[:_WORDS]}…"


def mended(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what `site_file` tells as a fault, so that no other check tells it again."""
    kept = {
        name: value.rstrip("\r") if name.startswith(PREFIXES) else value for name, value in environment.items()
    }  # fmt: skip
    if kept.get("SBATCH_PARTITION") == "":
        del kept["SBATCH_PARTITION"]
    return kept


def site_file(site: Site) -> Finding:
    """The site file was read in this shell, and what it set can be used as it is."""
    file = site.kit / SITE_FILE
    name = SITE_FILE if site.kit == site.folder else str(file)
    found = [*_line_ends(site, name, file), *_values(site)]
    if not site.environment.get("MINI_R1_RUNTIME"):
        found.append(_not_read(name, there=file.is_file()))
    if found:
        return worst(found)
    names = sorted(variable for variable in site.environment if variable.startswith(("SBATCH_", "MINI_R1_")))
    return ok(f"{name}{'' if file.is_file() else ' is not here'}; set in this shell: {', '.join(names)}")


def _line_ends(site: Site, name: str, file: Path) -> list[Finding]:
    ending = [variable for variable, value in site.raw.items() if variable.startswith(PREFIXES) and "\r" in value]
    try:
        in_file = b"\r" in file.read_bytes()
    except OSError:
        in_file = False
    if not in_file and not ending:
        return []
    what = f"{name} has Windows line ends (CRLF)" if in_file else "the site file had Windows line ends (CRLF)"
    where = f", and {', '.join(sorted(ending))} in this shell ends in one" if ending else ""
    return [fail(f"{what}{where}", f"sed -i 's/\\r$//' {name}, then source it again", "recipe")]


def _values(site: Site) -> list[Finding]:
    found = []
    if site.raw.get("SBATCH_PARTITION", "any").rstrip("\r") == "":
        found.append(
            fail(
                "SBATCH_PARTITION is set and empty: sbatch takes that for a partition without a name",
                "unset SBATCH_PARTITION, and take its line out of the site file",
                "recipe",
            )
        )
    quoted = [
        variable
        for variable, value in site.environment.items()
        if variable.startswith(("MINI_R1_", "HF_HOME")) and any(part.startswith("~") for part in value.split())
    ]
    if quoted:
        found.append(
            fail(
                f"{', '.join(sorted(quoted))}: a ~ within quotes stays a ~",
                'write "$HOME/..." instead, and source the file again',
                "recipe",
            )
        )
    return found


def _not_read(name: str, *, there: bool) -> Finding:
    if there:
        return fail(
            f"MINI_R1_RUNTIME is not set, and {name} is there: it was not read in this shell, or does not set it",
            f"set MINI_R1_RUNTIME in it to one of {', '.join(RUNTIMES)}, then: source {name}",
            "recipe",
        )
    return fail(
        "MINI_R1_RUNTIME is not set: there is no site file yet",
        f"in the kit's folder: cp {name}.example {name}, edit it, then: source {name}",
        "recipe",
    )


def mounts(site: Site) -> Finding:
    """What is to be mounted in a container is here, and its path can be written in a list of mounts."""
    if not site.in_container:
        return skip("nothing is mounted for a virtual environment" if site.runtime else "see runtime")
    found = [_in_a_list(site, f"{what} {path}", path) for what, path in _own_mounts(site).items()]
    found += [_mount(text) for text in site.environment.get("MINI_R1_MOUNTS", "").split()]
    return worst(found)


def _own_mounts(site: Site) -> dict[str, str]:
    """What the batch scripts mount of their own accord (`mounts` in slurm/runtime.sh)."""
    named = {variable: site.environment.get(variable) for variable in ("MINI_R1_RUNS", "TMPDIR")}
    named["HF_HOME"] = str(hub_home(site.environment))
    paths = {what: os.path.abspath(site.folder / path) for what, path in named.items() if path and path != "/tmp"}  # noqa: S108
    return {"the kit's folder": str(site.kit), "the current folder": str(site.folder), **paths}


def _in_a_list(site: Site, what: str, path: str) -> Finding:
    for sign, name in {",": "comma", ":": "colon", " ": "space"}.items():
        if sign in path and (sign != " " or site.runtime == "pyxis"):
            return fail(
                f"{what} has a {name}, and {site.runtime} could not mount it",
                "rename the folder, or use another",
                "recipe",
            )
    return ok(what)


def _mount(text: str) -> Finding:
    what = f"MINI_R1_MOUNTS: {text}"
    host, *others = text.split(":")
    if len(others) > 1 and others[-1] in ("ro", "rw"):
        others.pop()
    if "," in text or len(others) > 1:
        return fail(
            f"{what}: neither a comma nor a colon can be in a path that is mounted",
            "HOST, HOST:CONTAINER or HOST:CONTAINER:ro, and spaces between them",
            "recipe",
        )
    if not all(path.startswith("/") for path in (host, *others)):
        return fail(f"{what} is no full path", "begin it with a slash", "recipe")
    if not Path(host).exists():
        return fail(f"{what}: there is no {host} here", "correct it, or take it out", "recipe")
    return ok(what)


def is_mounted(site: Site, path: Path, *, to_write: bool = False) -> bool:
    """Whether a container sees the path under its own name, and may write there if it has to."""
    roots = list(_own_mounts(site).values())
    for text in site.environment.get("MINI_R1_MOUNTS", "").split():
        host, *others = text.split(":")
        if (not others or others[0] == host) and not (to_write and others[1:] == ["ro"]):
            roots.append(os.path.abspath(host))
    place = os.path.abspath(site.folder / path)
    return any(place == root or place.startswith(root.rstrip("/") + "/") for root in roots)
