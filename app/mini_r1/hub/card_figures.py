"""The held-out success of a run's snapshots, from what stands in its directory, and which of them is the best.

Files of an evaluation may come from another version of the kit, or be half written: every figure is optional, and what
is no number counts as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_r1.errors import KitError
from mini_r1.run.files import read_object
from mini_r1.run.reader import list_held_out_results, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.values import mapping, number


@dataclass(frozen=True, slots=True)
class Figure:
    """Held-out success of one step.

    Args:
        step: of the snapshot.
        success: share of right answers: pass@1 of sampled completions.
        source: where it stands: a file of `evaluation/`, or `the run's own curve`.
        evaluation: what that file holds; {} for the curve.
        problems: how many were asked.
    """

    step: int
    success: float
    source: str
    problems: int | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)


def evaluations(run: RunDir) -> list[Figure]:
    """What `mini-r1 evaluate` has found on the run's held-out part, by step."""
    found = []
    for step, limit, path in list_held_out_results(run):
        if limit is not None:
            continue  # a part of the problems, which may be an easy one
        values = read_object(path)
        at_1 = number(mapping(mapping(values.get("pass_at_k")).get("1")).get("value"))
        success = number(values.get("sampled")) if at_1 is None else at_1
        if success is not None:
            count = number(values.get("problems"))
            problems = None if count is None else int(count)
            found.append(Figure(step, success, f"evaluation/{path.name}", problems, values))
    return sorted(found, key=lambda figure: figure.step)


def curve(run: RunDir) -> list[Figure]:
    """What the run measured on held-out problems while it trained (`eval_strategy: steps`), by step."""
    found = []
    for row in read_metrics(run):
        success, count = number(row.get("eval_success")), number(row.get("eval_problems"))
        if success is not None and isinstance(row.get("step"), int):
            problems = None if count is None else int(count)
            found.append(Figure(row["step"], success, "the run's own curve", problems))
    return found


def measured(run: RunDir, steps: Sequence[int]) -> list[Figure]:
    """The figures to choose by: evaluations, else the run's own curve, which has one sample for each of fewer problems.

    Args:
        run: the run.
        steps: those of which there is a complete snapshot.
    """
    for figures in (evaluations(run), curve(run)):
        known = [figure for figure in figures if figure.step in steps]
        if known:
            return known
    return []


def best(run: RunDir, steps: Sequence[int]) -> Figure | None:
    """The snapshot of the highest held-out success, the earlier one of two alike; None where nothing was measured."""
    known = measured(run, steps)
    return max(known, key=lambda figure: (figure.success, -figure.step)) if known else None


def of_step(run: RunDir, step: int) -> Figure | None:
    """What is known of one snapshot."""
    for figures in (evaluations(run), curve(run)):
        for figure in figures:
            if figure.step == step:
                return figure
    return None


def chosen_step(run: RunDir, wanted: str, steps: Sequence[int]) -> int:
    """The step that `--snapshot` asks for.

    Args:
        run: the run.
        wanted: `BEST`, or a step.
        steps: those of which there is a complete snapshot, newest first.

    Raises:
        KitError: there is no such snapshot, or no figure to choose the best by.
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
    if int(wanted) not in steps and (run.snapshots / f"step-{int(wanted)}").exists():
        raise KitError(f"the snapshot of step {int(wanted)} of {run.path} is not complete (it has no manifest)")
    if int(wanted) not in steps:
        there = ", ".join(str(step) for step in reversed(steps))
        raise KitError(f"{run.path} has no complete snapshot of step {int(wanted)}; there are: {there}")
    return int(wanted)
