"""The held-out success of a run's snapshots, and the best of them."""

import math
from collections.abc import Sequence
from typing import Final

from mini_r1.errors import KitError
from mini_r1.run.reader import Evaluated, list_held_out_results, read_evaluations, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.values import number

CURVE: Final = "the run's own curve"
"""In place of the file: what the run measured while it trained, one sample for each of fewer problems."""


def evaluations(run: RunDir) -> list[Evaluated]:
    """Return what `mini-r1 evaluate` measured on the held-out part: on all of it before on some, then by step."""
    found = {path.name: -(limit or math.inf) for _, limit, path in list_held_out_results(run)}
    known = [each for each in read_evaluations(run, []) if each.file in found and each.figure("sampled") is not None]
    return sorted(known, key=lambda each: (found[each.file], each.step))


def curve(run: RunDir) -> list[Evaluated]:
    """Return what the run itself measured while it trained (`eval_strategy: steps`), by step."""
    return [
        Evaluated(CURVE, row["step"], int(number(row.get("eval_problems")) or 0), "", {"sampled": success})
        for row in read_metrics(run)
        if (success := number(row.get("eval_success"))) is not None
    ]


def measured(run: RunDir, steps: Sequence[int]) -> list[Evaluated]:
    """Return the figures of these steps to choose by, all on the same problems.

    Those of evaluations on the whole held-out part if there are any, else on the most of it (`--limit`), else the
    run's curve.
    """
    known = [each for each in evaluations(run) if each.step in steps]
    return [each for each in known if each.limit == known[0].limit] or [e for e in curve(run) if e.step in steps]


def best(run: RunDir, steps: Sequence[int]) -> Evaluated | None:
    """Return the figures of the highest success, the earlier of two equal ones; None if nothing was measured."""
    known = measured(run, steps)
    return max(known, key=lambda each: (each.figure("sampled") or 0.0, -each.step)) if known else None


def chosen_step(run: RunDir, wanted: str, steps: Sequence[int]) -> int:
    """Return the step that `--snapshot` asks for, `BEST` or a number, of the complete snapshots, newest first.

    Raise KitError if there is no such snapshot, or no figure to choose the best by.
    """
    if wanted.upper() == "BEST":
        if (figures := best(run, steps)) is None:
            raise KitError(
                f"{run.path} has no held-out success to choose the best snapshot by: run `mini-r1 evaluate {run.path}` "
                "first, or name a step with --snapshot N"
            )
        return figures.step
    if not wanted.isdecimal():
        raise KitError(f"--snapshot takes BEST or a step, not '{wanted[:40]}'")
    step = int(wanted)
    if step not in steps and (run.snapshots / f"step-{step}").exists():
        raise KitError(f"the snapshot of step {step} of {run.path} is not complete (it has no manifest)")
    if step not in steps:
        there = ", ".join(str(each) for each in reversed(steps))
        raise KitError(f"{run.path} has no complete snapshot of step {step}; there are: {there}")
    return step
