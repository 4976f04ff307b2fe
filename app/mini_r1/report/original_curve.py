"""The original's published figures, and the comparison of a run with them."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mini_r1.run.reader import RunData
from mini_r1.tasks.registry import DEFAULT_TASK

FORMAT_LEARNED = 0.9  # share of completions in the right format that counts as learned; the original gives no figure
AROUND = 5  # steps before and after a mark that are averaged: a single step of 192 completions has an error of 3 points
SUCCESS = "rewards/equation_original"  # the original's own verdict, on the completions that the run trains on
PUBLISHED: dict[str, Any] = {
    "what": "training reward at temperature 0.9, by the original's own scorer; never measured on held-out problems",
    "setup": "Qwen2.5-3B-Instruct, 4 x H100, 450 steps of 24 prompts x 8 completions, about 6 hours",
    "model": "Qwen2.5-3B-Instruct",
    "source": "Philipp Schmid, Mini-R1: Reproduce DeepSeek R1 'aha moment' "
    "(https://www.philschmid.de/mini-deepseek-r1), 30 January 2025: figures stated in the text",
    "format_step": 50,
    "success": [[100, 0.25], [200, 0.40], [450, 0.50]],
    "completion_length": [[0, 480], [100, 350], [130, 450], [450, 310]],
    "kl": [[450, 0.20]],
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run compared with the original at one step."""

    step: int
    verdict: str  # `on track`, `behind`, `not reached` or `not known`
    sentence: str


def has_original_task(run: RunData) -> bool:
    """Return whether a run trains on the original's task; the original's curve says nothing of another."""
    return bool(run.recipe.get("task", DEFAULT_TASK) == DEFAULT_TASK)


def compare(run: RunData) -> list[Comparison]:
    """Compare a run with the original's figures at steps 50, 100 and 200."""
    marks = [(PUBLISHED["format_step"], "rewards/format_original", "format", FORMAT_LEARNED, "learned by then")]
    for step, share in PUBLISHED["success"]:
        if step <= 200:
            marks.append((step, SUCCESS, "training success", share, f"{100 * share:.0f} %"))
    over = run.health.state in ("finished", "failed", "dead")
    found = []
    for step, figure, name, wanted, at_original in marks:
        value = _mean_around(run, figure, step)
        if run.step < step:
            verdict = "not reached"
            sentence = f"The run was over before step {step}" if over else f"Step {step} is not reached yet"
        elif value is None:
            verdict, sentence = "not known", f"Nothing was logged around step {step}"
        else:
            verdict = "on track" if value >= wanted else "behind"
            sentence = f"{verdict.capitalize()} at step {step}: {name} {100 * value:.0f} %"
        found.append(Comparison(step, verdict, f"{sentence} (the original: {at_original})."))
    return found


def why_not_comparable(run: RunData) -> str | None:
    """Return why a run can't be compared with the original's figures; None if it can."""
    model = str(run.recipe.get("model_name_or_path", run.record.get("model_name_or_path", "")))
    source = run.recipe.get("dataset_id_or_path")
    other = [] if PUBLISHED["model"] in model else ["another model"]
    if run.recipe.get("generator") is not None or source not in (None, "Jiayi-Pan/Countdown-Tasks-3to4", "generated"):
        other.append("other problems")
    if not other:
        return None
    return f"This run has {' and '.join(other)}: the original's curve shows the shape of a rise, not a target."


def _mean_around(run: RunData, figure: str, step: int) -> float | None:
    steps, values = run.points(figure)
    near = [value for at, value in zip(steps, values, strict=True) if abs(at - step) <= AROUND]
    if not near and steps:  # a run that logs rarely: its nearest row
        distance, value = min((abs(at - step), value) for at, value in zip(steps, values, strict=True))
        near = [value] if distance <= 4 * AROUND else []
    return fmean(near) if near else None
