"""`mini-r1 runs`: one line for each run of a folder: state, step, success, time, size. No torch, no pydantic.

`health` judges whether a run that says it is running does so. A file that is missing or damaged leaves its column
unknown.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mini_r1.console import printable, shown_bytes, text
from mini_r1.errors import KitError
from mini_r1.run.files import folder_bytes, read_object
from mini_r1.run.health import check_health
from mini_r1.run.reader import list_held_out_results, read_attempts, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.values import duration, interval, number

COLOURS = {"running": "cyan", "saved": "yellow", "finished": "green", "failed": "red", "dead": "red"}


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run; None is unknown."""

    run: str  # its directory
    state: str  # as of Health
    why: str  # the reason, a sentence that is safe to print
    step: int | None
    steps: int | None  # max_steps of the recipe
    model: str | None
    success: float | None
    success_from: str | None  # what the success was measured on: `training, step N` or `held out, step N`
    # or, after `evaluate --limit M`, `held out, step N, M problems`
    ci95: list[float] | None
    """Interval of a held-out success."""
    seconds: float | None  # duration of all attempts, each from its start to its last row of metrics
    bytes: int  # on disk
    heartbeat_age_s: float | None


def list_runs(folder: Path, now: float) -> list[ListedRun]:
    """Return the runs of a folder, or of the folders in it, the newest heartbeat first; none is a KitError."""
    if not folder.is_dir():
        raise KitError(f"{folder} is not a folder: name the one that holds the runs (runs, by default)")
    found = [list_run(run, now) for run in _find_runs(folder)]
    if not found:
        raise KitError(f"no run in {folder}: a run is a folder with a recipe.yaml in it")
    return sorted(found, key=lambda one: (one.heartbeat_age_s is None, one.heartbeat_age_s or 0.0, one.run))


def list_run(path: Path, now: float) -> ListedRun:
    """Return what the files of one run say."""
    run = RunDir(path)
    health = check_health(path, now)
    step = health.facts.get("step")
    rows = read_metrics(run)
    metrics = next((row for row in reversed(rows) if "success" in row), rows[0] if rows else {})
    trained = _share(metrics.get("success"))
    training = None if trained is None else (trained, f"training, step {metrics['step']}", None)
    success, success_from, ci95 = _held_out(run) or training or (None, None, None)
    model = run.read_record().get("model_name_or_path")
    seconds = [attempt.seconds for attempt in read_attempts(run) if attempt.seconds is not None]
    return ListedRun(
        run=str(path),
        state=health.state,
        why=health.why,
        step=metrics.get("step") if step is None else step,
        steps=_max_steps(run),
        model=text(model, 100) if isinstance(model, str) else None,
        success=success,
        success_from=success_from,
        ci95=ci95,
        seconds=round(sum(seconds), 1) if seconds else None,
        bytes=folder_bytes(path),
        heartbeat_age_s=health.facts.get("age_s"),
    )


def runs_table(found: list[ListedRun], folder: Path) -> Table:
    """Return the runs as a table for people."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold", min_width=8)
    table.add_column("state", overflow="fold", min_width=len("finished"))
    for heading in ("step", "success", "time", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        name = os.path.relpath(one.run, folder)
        state = Text(one.state, style=COLOURS.get(one.state, ""))
        if one.state not in ("running", "finished") and one.why:
            state.append(f": {one.why}", style="default")
        success = "?" if one.success is None else f"{one.success:.1%}"
        kind, _, measured = (one.success_from or "").partition(", ")
        marks = [f"{one.ci95[0] * 100:.0f}-{one.ci95[1] * 100:.0f}%"] if one.ci95 else []
        marks += [kind] if kind == "training" else measured.split(", ")[1:]
        success += f" ({', '.join(marks)})" if marks else ""
        table.add_row(
            Text(printable(one.run if name == "." else name)),
            state,
            "?" if one.step is None else f"{one.step}/{one.steps}" if one.steps else str(one.step),
            success,
            "?" if one.seconds is None else duration(one.seconds),
            shown_bytes(one.bytes),
        )
    return table


def _find_runs(folder: Path) -> list[Path]:
    """Return the folder if it is a run, else the runs in it and in its folders."""
    patterns = [depth + name for depth in ("", "[!.]*/", "[!.]*/[!.]*/") for name in ("recipe.yaml", "state.json")]
    found = {file.parent for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return [run for run in found if found.isdisjoint(run.parents)]


def _held_out(run: RunDir) -> tuple[float, str, list[float] | None] | None:
    """Return the success of the newest snapshot on the held-out part; on all problems rather than on some."""
    files = [(step, limit is None, limit or 0, path) for step, limit, path in list_held_out_results(run) if step]
    for step, whole, limit, path in sorted(files, reverse=True):
        result: dict[str, Any] = read_object(path)
        success = _share(result.get("sampled"))
        if success is not None:
            limits = interval(result.get("ci95"))
            sound = limits is not None and limits[0] >= 0 and limits[1] <= 1
            some = "" if whole else f", {limit:,} problems"
            return success, f"held out, step {step}{some}", [*limits] if limits and sound else None
    return None


def _max_steps(run: RunDir) -> int | None:
    """Return max_steps of the recipe file, without the recipe's reader, which takes longer to import than all else."""
    if not run.is_run():  # a pipe may never answer
        return None
    try:
        with run.recipe_file.open("rb") as file:
            match = re.search(rb"^max_steps: (\d{1,9})\s*$", file.read(1 << 20), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match and int(match[1]) else None


def _share(value: object) -> float | None:
    known = number(value)
    return known if known is not None and 0 <= known <= 1 else None
