"""What a check found, in the same words for the light checks of a node and the heavy ones in a process of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mini_r1.errors import ExitCode, KitError

Status = Literal["ok", "warn", "fail", "skip"]
Cause = Literal["recipe", "node"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    Args:
        check: its name, as in docs/doctor.md.
        status: `ok`; `warn` for what may cost time or work; `fail` for what will not work; `skip` for what does not
            apply here or could not be looked at.
        detail: what was found.
        fix: what to do about it.
        cause: of a failure. `recipe`: the recipe, the command or the installation, which no other node mends (exit code
            78). `node`: this machine, where a retry on another may succeed (150).
    """

    check: str
    status: Status
    detail: str
    fix: str = ""
    cause: Cause | None = None

    def named(self, check: str) -> Finding:
        """The same under the name of its check."""
        return replace(self, check=check)

    def to_dict(self) -> dict[str, Any]:
        """As one object of `--json`."""
        return asdict(self)


def ok(detail: str) -> Finding:
    """All is well."""
    return Finding("", "ok", detail)


def skip(detail: str) -> Finding:
    """Not looked at, and why."""
    return Finding("", "skip", detail)


def warn(detail: str, fix: str) -> Finding:
    """Something that need not stop a run."""
    return Finding("", "warn", detail, fix)


def fail(detail: str, fix: str, cause: Cause) -> Finding:
    """Something that a run would end with."""
    return Finding("", "fail", detail, fix, cause)


def from_error(error: KitError) -> Finding:
    """An error's sentence, which says what to do too; its exit code says whose fault it is."""
    return fail(error.message, "", "node" if error.exit_code == ExitCode.RETRY else "recipe")


def from_dict(value: Mapping[str, Any]) -> Finding:
    """What `to_dict` gave.

    Raises:
        KeyError, TypeError: it is something else.
    """
    return Finding(**{name: value[name] for name in ("check", "status", "detail", "fix", "cause")})


def worst(findings: Iterable[Finding]) -> Finding:
    """One finding for several things that one check looked at: the worst, with the words of all that are as bad."""
    order: dict[Status, int] = {"fail": 3, "warn": 2, "ok": 1, "skip": 0}
    every = list(findings)
    top = max(every, key=lambda finding: order[finding.status])
    alike = [finding for finding in every if finding.status == top.status]
    cause: Cause | None = "recipe" if any(finding.cause == "recipe" for finding in alike) else top.cause
    details = "; ".join(dict.fromkeys(finding.detail for finding in alike))
    fixes = "; ".join(dict.fromkeys(finding.fix for finding in alike if finding.fix))
    return replace(top, detail=details, fix=fixes, cause=cause)


def as_error(findings: Iterable[Finding]) -> KitError:
    """Return all failures as one error, with the exit code of `exit_code`."""
    failures = [finding for finding in findings if finding.status == "fail"]
    return KitError("\n".join(map(sentence, failures)), exit_code(failures))


def sentence(finding: Finding) -> str:
    """Return check, detail and fix on one line."""
    return ": ".join(part for part in (finding.check, finding.detail, finding.fix) if part)


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """78 if the recipe is at fault anywhere, else 150 if this node is, else 0."""
    causes = {finding.cause for finding in findings if finding.status == "fail"}
    if "recipe" in causes:
        return ExitCode.CONFIG
    return ExitCode.RETRY if causes else ExitCode.FINISHED
