"""Findings of the doctor's checks, and the exit code that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mini_r1.errors import ExitCode, KitError

Status = Literal["ok", "warn", "fail", "skip"]
"""`warn`: may cost time or work. `fail`: a run would end with it. `skip`: doesn't apply, or can't be checked."""
Cause = Literal["recipe", "node"]
"""`recipe`: recipe, command or installation, the same on any node (exit code 78). `node`: this machine; a retry on
another one may succeed (150)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    check: str  # name of the check, as in docs/doctor.md
    status: Status
    detail: str
    fix: str = ""
    cause: Cause | None = None  # of a failure

    def named(self, check: str) -> Finding:
        """Return the finding under the name of its check."""
        return replace(self, check=check)


ok, skip = partial(Finding, "", "ok"), partial(Finding, "", "skip")
warn, fail = partial(Finding, "", "warn"), partial(Finding, "", "fail")


def from_error(error: KitError) -> Finding:
    """Return an error as a finding; its message has the fix, its exit code the cause."""
    return fail(error.message, "", "node" if error.exit_code == ExitCode.RETRY else "recipe")


def worst(findings: Iterable[Finding]) -> Finding:
    """Return one finding for several: the worst, with detail and fix of all that are as bad."""
    order: tuple[Status, ...] = ("fail", "warn", "ok", "skip")
    ranked = sorted(findings, key=lambda finding: order.index(finding.status))
    alike = [finding for finding in ranked if finding.status == ranked[0].status]
    cause: Cause | None = "recipe" if any(finding.cause == "recipe" for finding in alike) else ranked[0].cause
    details = "; ".join(dict.fromkeys(finding.detail for finding in alike))
    fixes = "; ".join(dict.fromkeys(finding.fix for finding in alike if finding.fix))
    return replace(ranked[0], detail=details, fix=fixes, cause=cause)


def as_error(findings: Iterable[Finding]) -> KitError:
    """Return all failures as one error, with the exit code of `exit_code`."""
    failures = [finding for finding in findings if finding.status == "fail"]
    return KitError("\n".join(map(sentence, failures)), exit_code(failures))


def sentence(finding: Finding) -> str:
    """Return check, detail and fix on one line."""
    return ": ".join(part for part in (finding.check, finding.detail, finding.fix) if part)


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """Return 78 if the recipe causes any failure, else 150 if the node does, else 0."""
    causes = {finding.cause for finding in findings if finding.status == "fail"}
    if "recipe" in causes:
        return ExitCode.CONFIG
    return ExitCode.RETRY if causes else ExitCode.FINISHED
