"""A run in a few figures, sentences and tables: for the page, the Markdown and `--json`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any, NamedTuple

from mini_r1.console import text
from mini_r1.recipe.fields import Recipe
from mini_r1.report.original_curve import Comparison, compare, has_original_task, why_not_comparable
from mini_r1.report.plots import main_series, wilson
from mini_r1.run.reader import Evaluated, RunData, count_vllm_processes
from mini_r1.tasks.registry import task_of_row
from mini_r1.values import duration, interval, mapping, number

SHOWN_REASONS = 12  # most reasons of failure in the table; the evaluation's file has all
FEW_ROWS = 5  # rows of metrics that are averaged for the figures at the beginning and at the end of training


class Tile(NamedTuple):
    """One figure at the top of the page."""

    label: str
    value: str
    detail: str


@dataclass
class Summary:
    """The figures and sentences of one run."""

    run: RunData
    sentence: str
    tiles: list[Tile]
    comparisons: list[Comparison]  # with the original; empty if the run can't be compared with it
    caveat: str | None  # why it can't; None for a run of another task, which is not compared at all
    gpu_hours: float
    cost: float | None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        run = self.run
        held_out = None
        if series := main_series(run):
            last = series[-1]
            figures = {key: last.figure(key) for key in ("greedy", "sampled", "tries", "format")}
            limits = {key: last.interval(key) for key in ("ci95", "greedy_ci95")}
            held_out = {"step": last.step, "problems": last.problems, **figures, **limits}
        return {
            "run": str(run.run.path),
            "state": text(run.state.get("state")) or None,
            "step": run.step,
            "max_steps": run.planned,
            "attempts": len(run.attempts),
            "held_out": held_out,
            "training_success": next(reversed(run.points("success")[1]), None),
            "gpu_hours": round(self.gpu_hours, 3),
            "cost": None if self.cost is None else round(self.cost, 2),
            "original": {str(each.step): each.verdict for each in self.comparisons},
            "missing": run.missing,
        }


def summarise(run: RunData, price: float | None) -> Summary:
    """Return the summary of a run; `price` is that of a GPU-hour, in any currency."""
    gpu_hours = sum((attempt.seconds or 0.0) * attempt.gpus for attempt in run.attempts) / 3600
    cost = gpu_hours * price if price is not None else None
    tiles = [_held_out_tile(run), *_training_tiles(run), *_time_tiles(run, gpu_hours, cost, price)]
    caveat, comparisons = None, []
    if has_original_task(run):
        caveat = why_not_comparable(run)
        comparisons = [] if caveat else compare(run)
    return Summary(run, _headline(run), tiles, comparisons, caveat, gpu_hours, cost)


def compare_tiles(summaries: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """Return the label of each tile that a run has, and the value of every run."""
    columns = [{tile.label: tile.value for tile in summary.tiles} for summary in summaries]
    labels = dict.fromkeys(label for column in columns for label in column)
    return [(label, [column.get(label, "–") for column in columns]) for label in labels]


def percent(share: float) -> str:
    """Return a share for people: 0.4 %, 57 %."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def percent_range(limits: tuple[float, float]) -> str:
    """Return an interval for people: 52 to 58 %."""
    return f"{percent(limits[0]).removesuffix(' %')} to {percent(limits[1])}"


def _headline(run: RunData) -> str:
    series = [(e, value) for e in main_series(run) if (value := e.figure("sampled")) is not None]
    if not series:
        if not (ends := _ends(run.points("success")[1])):
            return "Its success is not known yet."
        return (
            f"Training success is {percent(ends[1])} at step {run.step}; it was {percent(ends[0])} at the beginning. "
            "Success on held-out problems was not measured."
        )
    (start, before), (end, success) = series[0], series[-1]
    at_start = f"; at step {start.step} it was"
    sentence = f"Success on {end.problems:,} held-out problems is {percent(success)}"
    if limits := end.interval("ci95"):
        sentence += f" (95 %: {percent_range(limits)})"
    if len(series) > 1:
        sentence += f"{at_start} {percent(before)}"
    if search := random_search(end):
        tries, share = search
        sentence += f". A random solver solves {percent(share)} of them in {tries} {'try' if tries == 1 else 'tries'}"
    first_tries, last_tries = start.figure("tries"), end.figure("tries")
    if last_tries is not None:
        sentence += f". An answer has {last_tries:.1f} tries"
        if len(series) > 1 and first_tries is not None:
            sentence += f"{at_start} {first_tries:.1f}"
    return f"{sentence}."


def random_search(evaluated: Evaluated) -> tuple[int, float] | None:
    """Return tries and success of the random solver, for the tries of one answer or the next number measured."""
    solver = mapping(mapping(evaluated.values.get("baselines")).get("random_solver"))
    at_tries = {int(k): number(v) for k, v in mapping(solver.get("success_at_tries")).items() if _is_count(k)}
    made = evaluated.figure("tries")
    known = [(n, share) for n, share in at_tries.items() if share is not None and made is not None and n >= made]
    return min(known, default=None)


def _held_out_tile(run: RunData) -> Tile:
    details = []
    if series := main_series(run):
        end = series[-1]
        sampled, greedy = end.figure("sampled"), end.figure("greedy")
        value, step = sampled if sampled is not None else greedy or 0.0, end.step
        limits = end.interval("ci95" if sampled is not None else "greedy_ci95")
        details = [f"greedy {percent(greedy)}"] if sampled is not None and greedy is not None else []
        details += [f"{end.problems:,} problems"] if end.limit else []
    else:
        steps, shares = run.points("eval_success")
        if not steps:
            return Tile("Held-out success", "–", "not measured: mini-r1 evaluate")
        value, step = shares[-1], int(steps[-1])
        limits = wilson(value, next(reversed(run.points("eval_problems")[1]), 0))
        details = ["one sample each"]
    around = [f"95 %: {percent_range(limits)}"] if limits else []
    return Tile("Held-out success", percent(value), ", ".join([*around, *details, f"step {step}"]))


def _training_tiles(run: RunData) -> list[Tile]:
    figures: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("Training success", "success", percent),
        ("Format", "rewards/format", percent),
        ("Tries per answer", "tries", "{:.1f}".format),
        ("Tokens per answer", "completion_length", "{:.0f}".format),
    )
    tiles = []
    for label, figure, show in figures:
        if ends := _ends(run.points(figure)[1]):
            kind = "" if figure == "success" else "in training; "  # the headline is about held-out problems
            tiles.append(Tile(label, show(ends[1]), f"{kind}{show(ends[0])} at the beginning"))
    return tiles


def _time_tiles(run: RunData, gpu_hours: float, cost: float | None, price: float | None) -> list[Tile]:
    seconds = sum(attempt.seconds or 0.0 for attempt in run.attempts)
    if not seconds:
        return []
    attempts = f"in {len(run.attempts)} attempts, " if len(run.attempts) > 1 else ""
    if not gpu_hours:
        return [Tile("Time", duration(seconds), f"{attempts}on the CPU, no GPU")]
    paid = f"cost {cost:,.2f} at {price:g} a GPU-hour" if cost is not None else "no price: --price-per-gpu-hour"
    hours = f"{gpu_hours:.1f}" if gpu_hours >= 1 else f"{gpu_hours:.2f}"
    return [Tile("Time", duration(seconds), f"{attempts}repeated steps included"), Tile("GPU-hours", hours, paid)]


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the means of the first and of the last few values."""
    few = max(1, min(FEW_ROWS, len(values) // 2))
    return (fmean(values[:few]), fmean(values[-few:])) if values else None


# --- tables ---


class Fact(NamedTuple):
    """One line of a comparison of runs."""

    key: str
    values: list[str]  # one for each run
    differs: bool  # whether the runs differ
    changed: bool  # whether a run has another value than the default


def recipe_facts(runs: Sequence[RunData]) -> list[Fact]:
    """Return every key of the recipes."""
    defaults = _flatten({name: f.get_default(call_default_factory=True) for name, f in Recipe.model_fields.items()})
    return _facts([_flatten(run.recipe) for run in runs], "–", defaults)


def provenance_facts(runs: Sequence[RunData]) -> list[Fact]:
    """Return versions, devices and data of each run's last attempt."""
    columns = []
    for run in runs:
        facts: dict[str, Any] = run.attempts[-1].facts if run.attempts else {}
        command = facts.get("command")
        parts = [part for part in command[1:] if isinstance(part, str)] if isinstance(command, list) else []
        columns.append(
            {
                "kit": text(facts.get("kit")),
                "code": text(facts.get("code_revision")),
                "python": text(facts.get("python")),
                **{text(k): text(v) or "not installed" for k, v in mapping(facts.get("versions")).items()},
                "devices": _devices(facts),
                "DeepSpeed": text(facts.get("deepspeed")) or "no",
                **{f"model: {text(k)}": text(v) for k, v in mapping(facts.get("model")).items() if v is not None},
                **{f"data: {text(k)}": text(v) for k, v in mapping(run.record.get("data")).items() if v is not None},
                "command": text(" ".join(["mini-r1", *parts])) if command else "",
            }
        )
    return _facts(columns, "not known", {})


def _facts(columns: Sequence[dict[str, str]], absent: str, defaults: dict[str, str]) -> list[Fact]:
    facts = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, absent) or ("" if key in defaults else absent) for column in columns]
        facts.append(Fact(key, values, len(set(values)) > 1, any(v != defaults.get(key, "") for v in values)))
    return facts


def tables(run: RunData) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Return title, headings and rows of the tables of one run; empty ones are left out."""
    found = (
        ("Held-out evaluations", (*EVALUATION_HEADINGS, "file"), evaluation_rows(run)),
        ("By problem, newest evaluation", ("", "problems", "greedy (95 %)", "sampled (95 %)"), _strata_rows(run)),
        ("Why answers fail, newest evaluation", ("reason", "answers", "share"), _failure_rows(run)),
        ("Attempts", ("attempt", "started", "steps", "time", "host", "devices"), attempt_rows(run)),
    )
    return [table for table in found if table[2]]


def attempt_rows(run: RunData) -> list[list[str]]:
    """Return number, start, steps, time, host and devices of each attempt."""
    rows = []
    for attempt, after in zip_longest(run.attempts, run.attempts[1:]):
        first, last = attempt.first_step, attempt.last_step
        steps = "none" if first is None else f"{first} to {last}"
        if after is not None and after.first_step and last and after.first_step <= last:
            steps += f" (repeated from {after.first_step} on)"
        seconds = "" if attempt.seconds is None else duration(attempt.seconds)
        host, devices = text(attempt.facts.get("host")), _devices(attempt.facts)
        rows.append([str(attempt.number), text(attempt.facts.get("started")), steps, seconds, host, devices])
    return [[cell or "not known" for cell in row] for row in rows]


EVALUATION_HEADINGS = ("step", "problems", "greedy (95 %)", "sampled (95 %)", "pass@k", "tries", "format")


def evaluation_rows(run: RunData) -> list[list[str]]:
    """Return the figures of EVALUATION_HEADINGS and the file of each evaluation."""
    rows = []
    for evaluated in sorted(run.evaluations, key=lambda e: (e.step, e.file)):
        at_k = mapping(evaluated.values.get("pass_at_k")).items()
        known = sorted((int(k), number(mapping(v).get("value"))) for k, v in at_k if _is_count(k))
        tries, kept = evaluated.figure("tries"), evaluated.figure("format")
        rows.append(
            [
                str(evaluated.step),
                f"{evaluated.problems:,}",
                _with_limits(evaluated.figure("greedy"), evaluated.interval("greedy_ci95")),
                _with_limits(evaluated.figure("sampled"), evaluated.interval("ci95")),
                ", ".join(f"@{k} {percent(value)}" for k, value in known if value is not None and k > 1),
                "" if tries is None else f"{tries:.1f}",
                "" if kept is None else percent(kept),
                evaluated.file,
            ]
        )
    return rows


def _strata_rows(run: RunData) -> list[list[str]]:
    """Return the newest evaluation's success by the task's strata."""
    return [
        [
            text(task_of_row(run.recipe).describe_stratum(by.removeprefix("by_"), key)),
            f"{number(figures.get('problems')) or 0:,.0f}",
            _with_limits(number(figures.get("greedy")), interval(figures.get("greedy_ci95"))),
            _with_limits(number(figures.get("sampled")), interval(figures.get("ci95"))),
        ]
        for evaluated in main_series(run)[-1:]
        for by in [name for name in evaluated.values if name.startswith("by_")]
        for key, figures in mapping(evaluated.values.get(by)).items()
        if isinstance(figures, dict)
    ]


def _failure_rows(run: RunData) -> list[list[str]]:
    """Return why sampled answers of the newest evaluation fail, the most frequent reason first."""
    rows = []
    for evaluated in main_series(run)[-1:]:
        sampled = evaluated.problems * (number(evaluated.values.get("samples")) or 1)
        counts = [(text(k), number(v)) for k, v in mapping(evaluated.values.get("failures")).items()]
        known = sorted(((k, v) for k, v in counts if v is not None), key=lambda kv: -kv[1])[:SHOWN_REASONS]
        rows += [[reason, f"{count:,.0f}", percent(count / sampled) if sampled else ""] for reason, count in known]
    return rows


def _is_count(key: str) -> bool:
    return key.isdecimal() and len(key) < 10


def _with_limits(value: float | None, limits: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return percent(value) + (f" ({percent_range(limits)})" if limits else "")


def _devices(facts: dict[str, Any]) -> str:
    devices = facts.get("devices")
    if not isinstance(devices, list):
        return ""
    names = [text(device) for device in devices[:64]]
    counted = [f"{names.count(n)} × {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names)]
    workers = facts.get("workers")
    several = f"; {workers} workers" if isinstance(workers, int) and workers > 1 else ""
    count = count_vllm_processes(facts)
    where = "the same" if facts.get("vllm_shared") is True else "one more" if count == 1 else f"{count} more"
    return ", ".join(counted) + several + f"; vLLM on {where}" * (count > 0)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        value = value.model_dump() if hasattr(value, "model_dump") else value
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str) or value is None:
            flat[f"{prefix}{key}"] = text(value)
        else:
            flat[f"{prefix}{key}"] = text(json.dumps(value, ensure_ascii=False, default=str))
    return flat
