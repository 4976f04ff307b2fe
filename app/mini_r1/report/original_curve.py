"""The published figures, and how a run stands beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mini_r1.run.reader import RunData

FORMAT_KEPT = 0.9
"""Share of completions in the right format from which it counts as learned; the original gives no figure for it."""
AROUND = 5
"""Steps before and after one whose mean is compared: a single step of 192 completions has an error of 3 points."""
SUCCESS = "rewards/equation_original"
"""The figure to compare: the original's own verdict, on the completions that the run trains on."""


@cache
def published() -> dict[str, Any]:
    """The original's figures with their source (original_curve.json)."""
    return dict(json.loads((files("mini_r1.report") / "original_curve.json").read_text("utf-8")))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands at one of the original's marks."""

    step: int
    verdict: str
    """`on track`, `behind`, `not reached` or `not known`."""
    sentence: str


def standings(run: RunData) -> list[Standing]:
    """How a run stands at steps 50, 100 and 200, against what the original published."""
    figures = published()
    marks = [(int(figures["format_step"]), "rewards/format_original", "format", FORMAT_KEPT)]
    marks += [(int(step), SUCCESS, "training success", share) for step, share in figures["success"] if step <= 200]
    over = run.state_name in ("finished", "failed")
    found = []
    for step, figure, words, wanted in marks:
        value = _around(run, figure, step)
        at_original = f"the original: {'learned by then' if figure != SUCCESS else f'{100 * wanted:.0f} %'}"
        if run.step < step:
            reached = f"The run was over before step {step}" if over else f"Step {step} is not reached yet"
            found.append(Standing(step, "not reached", f"{reached} ({at_original})."))
        elif value is None:
            found.append(Standing(step, "not known", f"Nothing was logged around step {step} ({at_original})."))
        elif value >= wanted:
            found.append(
                Standing(step, "on track", f"On track at step {step}: {words} {100 * value:.0f} % ({at_original}).")
            )
        else:
            behind = f"Behind at step {step}: {words} {100 * value:.0f} % ({at_original})."
            found.append(Standing(step, "behind", behind))
    return found


def caveat(run: RunData) -> str | None:
    """Why the original's curve is no measure for this run; None where it is one."""
    model = str(run.recipe.get("model_name_or_path", run.record.get("model_name_or_path", "")))
    figures = published()
    other = []
    if str(figures["model"]) not in model:
        other.append("another model")
    source = run.recipe.get("dataset_id_or_path")
    if run.recipe.get("generator") is not None or source not in (None, "Jiayi-Pan/Countdown-Tasks-3to4", "generated"):
        other.append("other problems")
    if not other:
        return None
    what = " and ".join(other)
    return f"This run has {what}: the original's curve shows what a rise looks like, and is no mark to reach."


def _around(run: RunData, figure: str, step: int) -> float | None:
    steps, values = run.points(figure)
    near = [value for at, value in zip(steps, values, strict=True) if abs(at - step) <= AROUND]
    if not near and steps:  # logged rarely: the nearest row, if it is near at all
        nearest = min(range(len(steps)), key=lambda i: abs(steps[i] - step))
        near = [values[nearest]] if abs(steps[nearest] - step) <= 4 * AROUND else []
    return sum(near) / len(near) if near else None
