"""`mini-r1 runs`: the runs of a folder, one line each: state, step, success, time, size. No torch, nothing trusted.

A run that says it is running and whose process is gone, or whose heartbeat is older than its own limit, is dead or
stuck: `health` judges that. A
file that is missing or broken leaves its column unknown.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mini_r1.console import printable, shown_bytes
from mini_r1.errors import KitError
from mini_r1.run import health
from mini_r1.run.run_dir import RunDir, read_jsonl, read_object
from mini_r1.values import duration, interval, number

COLOURS = {"running": "cyan", "saved": "yellow", "finished": "green", "failed": "red", "dead": "red"}


@dataclass(frozen=True, slots=True)
class Row:
    """One run.

    Args:
        run: its directory.
        state: running, saved (stopped in order: the same command resumes it), finished, failed, dead (it says that it
            runs, and its process is gone or its heartbeat too old), not started, unknown.
        why: the reason, in a sentence; safe to print.
        step: the last one; None: unknown.
        steps: to be done in all, as far as a recipe says it.
        model: what is trained.
        success: a share, or None.
        success_from: what it was measured on: `held out, step N` or `training, step N`.
        ci95: interval of a held-out success.
        seconds: of all attempts, from their start to their last line of metrics.
        bytes: on disk.
        heartbeat_age_s: since the run's last sign of life.
    """

    run: str
    state: str
    why: str
    step: int | None
    steps: int | None
    model: str | None
    success: float | None
    success_from: str | None
    ci95: list[float] | None
    seconds: float | None
    bytes: int
    heartbeat_age_s: float | None


def rows(folder: Path, now: float) -> list[Row]:
    """Every run of a folder, the one heard of last first; the folder may be a run itself.

    Args:
        folder: of runs; a folder within it is looked into once more, as a sweep's are.
        now: seconds since the epoch.

    Raises:
        KitError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise KitError(f"{folder} is not a folder: name the one that holds the runs (runs, by default)")
    found = [row(run, now) for run in _runs(folder)]
    if not found:
        raise KitError(f"no run in {folder}: a run is a folder with a recipe.yaml in it")
    return sorted(found, key=lambda one: (one.heartbeat_age_s is None, one.heartbeat_age_s or 0.0, one.run))


def row(path: Path, now: float) -> Row:
    """One run, as far as its files tell."""
    run = RunDir(path)
    state, why, step, age = _state(path, now)
    metrics = _last_metrics(run)
    success, where, interval = _held_out(run) or _training(metrics) or (None, None, None)
    record = run.read_record()
    model = record.get("model_name_or_path")
    last = metrics["step"] if metrics else None
    return Row(
        run=str(path),
        state=state,
        why=why,
        step=last if step is None else step,
        steps=_max_steps(run),
        model=printable(model)[:100] if isinstance(model, str) else None,
        success=success,
        success_from=where,
        ci95=interval,
        seconds=_seconds(run, record),
        bytes=_size(path),
        heartbeat_age_s=age,
    )


def to_json(found: list[Row]) -> str:
    """For --json."""
    return json.dumps([asdict(one) for one in found])


def table(found: list[Row], folder: Path) -> Table:
    """For people."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("run", overflow="fold", min_width=8)
    made.add_column("state", overflow="fold", min_width=len("finished"))
    for heading in ("step", "success", "time", "size"):
        made.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        name = os.path.relpath(one.run, folder)
        state = Text(one.state, style=COLOURS.get(one.state, ""))
        if one.state not in ("running", "finished") and one.why:
            state.append(f": {one.why}", style="default")
        made.add_row(
            Text(printable(one.run if name == "." else name)),
            state,
            "?" if one.step is None else f"{one.step}/{one.steps}" if one.steps else str(one.step),
            _success(one),
            "?" if one.seconds is None else duration(one.seconds),
            shown_bytes(one.bytes),
        )
    return made


def _success(one: Row) -> str:
    if one.success is None:
        return "?"
    if one.ci95 is None:
        return f"{one.success:.1%} (training)"
    return f"{one.success:.1%} ({one.ci95[0] * 100:.0f}-{one.ci95[1] * 100:.0f}%)"


def _runs(folder: Path) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
        return
    for path in _folders(folder):
        if _is_run(path):
            yield path
        else:
            yield from (inner for inner in _folders(path) if _is_run(inner))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # not ours to enter
        return []


def _is_run(path: Path) -> bool:
    try:
        return RunDir(path).is_run() or RunDir(path).state_file.is_file()
    except OSError:
        return False


def _state(path: Path, now: float) -> tuple[str, str, int | None, float | None]:
    """State, why, last step and age of the heartbeat."""
    if not RunDir(path).state_file.exists():
        return "not started", "it has no state.json", None, None
    found = health.check(path, now)
    facts = found.facts
    why = found.sentence.removeprefix(printable(str(path))).strip()
    state = {"interrupted": "saved"}.get(str(facts.get("state")), str(facts.get("state", "unknown")))
    if state == "running" and not found.healthy:
        state = "dead" if "hang_timeout_s" in facts else "unknown"
    if state not in COLOURS:
        state = "unknown"
    return state, why, facts.get("step"), facts.get("age_s")


def _held_out(run: RunDir) -> tuple[float, str, list[float] | None] | None:
    """The newest snapshot's evaluation on the held-out part; one of all problems before one of some."""
    files = [(step, limit is None, path) for step, limit, path in run.held_out_results() if step]
    for step, _, path in sorted(files, reverse=True):
        result = read_object(path)
        value = _share(result.get("sampled"))
        if value is not None:
            limits = interval(result.get("ci95"))
            sound = limits is not None and limits[0] >= 0 and limits[1] <= 1
            return value, f"held out, step {step}", [*limits] if limits and sound else None
    return None


def _training(metrics: dict[str, Any]) -> tuple[float, str, None] | None:
    value = _share(metrics.get("success"))
    return None if value is None else (value, f"training, step {metrics['step']}", None)


def _last_metrics(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in run.metrics():
        if "success" in one or not found:
            found = one
    return found


def _seconds(run: RunDir, record: dict[str, Any]) -> float | None:
    """Of all attempts; an attempt without a line of metrics took no time that is known."""
    attempts = record.get("attempts")
    total = None
    for attempt in attempts if isinstance(attempts, list) else []:
        number = attempt.get("attempt") if isinstance(attempt, dict) else None
        if type(number) is not int:
            continue
        try:
            began = datetime.strptime(attempt["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except (KeyError, TypeError, ValueError):
            continue
        times = (one.get("time") for one in read_jsonl(run.attempts / str(number) / "metrics.jsonl"))
        ended = max((at for at in times if isinstance(at, int | float) and at >= began), default=None)
        if ended is not None:
            total = (total or 0.0) + ended - began
    return None if total is None else round(total, 1)


def _max_steps(run: RunDir) -> int | None:
    """Of the recipe as it is written: its reader would take longer than all of this."""
    if not run.is_run():  # a pipe in its place would be waited for
        return None
    try:
        with run.recipe_file.open("rb") as file:
            match = re.search(rb"^max_steps: (\d{1,9})\s*$", file.read(1 << 20), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match and int(match[1]) else None


def _size(path: Path) -> int:
    """Bytes of all files below, links not followed."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def _share(value: object) -> float | None:
    known = number(value)
    return known if known is not None and 0 <= known <= 1 else None
