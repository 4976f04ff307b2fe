"""Slurm's time to stop, against what the plan says that the run needs to save.

`scontrol show` is read in the forms that were seen of Slurm 22.05.8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from mini_r1.doctor.site_file import Site
from mini_r1.doctor.slurm import directives, names_of_partitions, script_text
from mini_r1.findings import Finding, ok, skip, warn
from mini_r1.plan.timing import describe_stop

_FIELD: Final = re.compile(r"(\w+)\s*=\s*(\S+)")
_LEAD: Final = re.compile(r"@(\d+)")
NO_PREEMPTION: Final = ("preempt/none", "(null)")
"""Values of PreemptType."""


def time_to_save(site: Site) -> Finding:
    """A preemption, a scancel and the time limit leave the run time to save."""
    timing = site.plan.timing if site.plan else None
    if timing is None:
        return skip("how long a save takes is not known: name a recipe, of a model whose shape the plan knows")
    config, problem = _fields(site, "config")
    kill_wait = config.get("KillWait", "")
    if not kill_wait.isdecimal():
        return skip(f"KillWait is not known: {problem}")
    enough = math.ceil(timing.stop_s / 10) * 10
    given = [
        Given(
            int(kill_wait),
            f"KillWait is {kill_wait} s, all the time that a scancel leaves",
            "bound the loss with --set save_minutes=10 or a smaller save_steps, and ask the administrator for a "
            f"KillWait of {enough} s",
        ),
        _notice(site, int(kill_wait), enough),
        *(_preemption(site, name, int(kill_wait), enough) for name in _preempted(site, config)),
    ]
    needed = f"asked to stop, the run needs up to {describe_stop(timing)}"
    short = [each for each in given if each.seconds < timing.stop_s]
    if not short:
        return ok(f"{needed}; {'; '.join(each.words for each in given)}")
    return warn(
        f"{needed}; {'; '.join(each.words for each in short)}: a run that is killed before it has saved repeats the "
        "steps since its last checkpoint",
        "; ".join(each.fix for each in short),
    )


class Given(NamedTuple):
    """Seconds that a run is given to stop."""

    seconds: int
    words: str
    fix: str


def _notice(site: Site, kill_wait: int, enough: int) -> Given:
    signal = site.environment.get("SBATCH_SIGNAL") or directives(script_text(site)).get("signal", "")
    lead = _LEAD.search(signal)
    fix = f"write #SBATCH --signal=B:USR1@{max(600, enough)} into {site.script}"
    if lead is None:
        return Given(kill_wait, f"{site.script} asks for no notice before its time limit", fix)
    return Given(int(lead[1]), f"the notice comes {lead[1]} s before the time limit (--signal={signal})", fix)


def _preempted(site: Site, config: Mapping[str, str]) -> list[str]:
    """The partitions of the job, where this Slurm preempts at all."""
    if config.get("PreemptType", NO_PREEMPTION[0]) in NO_PREEMPTION:
        return []
    return names_of_partitions(site)


def _preemption(site: Site, partition: str, kill_wait: int, enough: int) -> Given:
    fields, _ = _fields(site, "partition", partition)
    grace, mode = fields.get("GraceTime", ""), fields.get("PreemptMode", "OFF")
    if mode == "OFF" or not grace.isdecimal():
        return Given(enough, f"jobs in {partition} are not preempted", "")
    fix = f"ask for a GraceTime of {enough} s in {partition}"
    if int(grace) == 0:
        return Given(kill_wait, f"jobs in {partition} may be preempted ({mode}), and it has no GraceTime", fix)
    # After GraceTime comes a second TERM, which ends the run at once: KillWait adds nothing.
    return Given(int(grace), f"jobs in {partition} may be preempted ({mode}), and its GraceTime is {grace} s", fix)


def _fields(site: Site, *what: str) -> tuple[dict[str, str], str]:
    """The fields that `scontrol show` prints, and its words."""
    answer = site.ask("scontrol", "show", *what, *(["--oneliner"] if len(what) > 1 else []))
    return (dict(_FIELD.findall(answer.out)) if answer.code == 0 else {}), answer.words
