"""The held-out success of a run's snapshots, read from its directory, and the best of them.

A file of an evaluation may be half written: every figure is optional, and a value that is not a number is ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_r1.errors import KitError
from mini_r1.run.files import read_object
from mini_r1.run.reader import list_held_out_results, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.values import number


@dataclass(frozen=True, slots=True)
class Figure:
    """Held-out success of one step: the share of right answers among sampled ones (pass@1).

    `source` is a file of `evaluation/`, whose content is `evaluation`, or `the run's own curve`.
    """

    step: int
    success: float
    source: str
    problems: int | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)


def evaluations(run: RunDir) -> list[Figure]:
    """Return what `mini-r1 evaluate` measured on the whole held-out part, by step."""
    found = []
    for step, limit, path in list_held_out_results(run):
        values = read_object(path) if limit is None else {}
        success = number(values.get("sampled"))
        if success is not None:
            found.append(Figure(step, success, f"evaluation/{path.name}", _count(values.get("problems")), values))
    return sorted(found, key=lambda figure: figure.step)


def curve(run: RunDir) -> list[Figure]:
    """Return what the run itself measured while it trained (`eval_strategy: steps`), by step."""
    return [
        Figure(row["step"], success, "the run's own curve", _count(row.get("eval_problems")))
        for row in read_metrics(run)
        if (success := number(row.get("eval_success"))) is not None
    ]


def measured(run: RunDir, steps: Sequence[int]) -> list[Figure]:
    """Return the figures of these steps to choose by.

    Those of evaluations if there are any, else the run's own curve, which has one sample for each of fewer problems.
    """
    known = [[figure for figure in found if figure.step in steps] for found in (evaluations(run), curve(run))]
    return known[0] or known[1]


def best(run: RunDir, steps: Sequence[int]) -> Figure | None:
    """Return the figure of the highest success, the earlier of two equal ones; None if nothing was measured."""
    known = measured(run, steps)
    return max(known, key=lambda figure: (figure.success, -figure.step)) if known else None


def of_step(run: RunDir, step: int) -> Figure | None:
    """Return the figure of one step, None if it was not measured."""
    return next(iter(measured(run, [step])), None)


def chosen_step(run: RunDir, wanted: str, steps: Sequence[int]) -> int:
    """Return the step that `--snapshot` asks for, `BEST` or a number, of the complete snapshots, newest first.

    Raise KitError if there is no such snapshot, or no figure to choose the best by.
    """
    if wanted.upper() == "BEST":
        figure = best(run, steps)
        if figure is None:
            raise KitError(
                f"{run.path} has no held-out success to choose the best snapshot by: run `mini-r1 evaluate {run.path}` "
                "first, or name a step with --snapshot N"
            )
        return figure.step
    if not wanted.isdecimal():
        raise KitError(f"--snapshot takes BEST or a step, not '{wanted[:40]}'")
    step = int(wanted)
    if step not in steps and (run.snapshots / f"step-{step}").exists():
        raise KitError(f"the snapshot of step {step} of {run.path} is not complete (it has no manifest)")
    if step not in steps:
        there = ", ".join(str(each) for each in reversed(steps))
        raise KitError(f"{run.path} has no complete snapshot of step {step}; there are: {there}")
    return step


def _count(value: object) -> int | None:
    count = number(value)
    return None if count is None else int(count)
