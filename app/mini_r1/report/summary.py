"""A run in a few figures and sentences: for the head of the page, the Markdown and `--json` alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_r1.recipe.fields import Recipe
from mini_r1.report import original_curve
from mini_r1.report.plots import main_series, wilson
from mini_r1.run.reader import Attempt, Evaluated, RunData, text
from mini_r1.values import duration, interval, mapping, number

SHOWN_REASONS = 12
"""Reasons of failure in the table; the evaluation's file has all."""
FEW_ROWS = 5
"""Rows of metrics whose mean is the training figure of the beginning and of the end."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the head."""

    label: str
    value: str
    detail: str = ""


@dataclass
class Summary:
    """What is said of one run."""

    run: RunData
    sentence: str
    tiles: list[Tile] = field(default_factory=list)
    standings: list[original_curve.Standing] = field(default_factory=list)
    caveat: str | None = None
    gpu_hours: float = 0.0
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        run = self.run
        held = main_series(run)
        last = held[-1] if held else None
        return {
            "run": str(run.run.path),
            "state": text(run.state.get("state")) or None,
            "step": run.step,
            "max_steps": run.planned,
            "attempts": len(run.attempts),
            "held_out": None
            if last is None
            else {
                "step": last.step,
                "problems": last.problems,
                **{key: last.figure(key) for key in ("greedy", "sampled", "tries", "format")},
                "ci95": last.interval("ci95"),
                "greedy_ci95": last.interval("greedy_ci95"),
            },
            "training_success": next(reversed(run.points("success")[1]), None),
            "gpu_hours": round(self.gpu_hours, 3),
            "cost": None if self.cost is None else round(self.cost, 2),
            "original": {str(s.step): s.verdict for s in self.standings},
            "missing": run.missing,
        }


def summarise(run: RunData, price: float | None) -> Summary:
    """The figures and sentences of one run.

    Args:
        run: what was read of it.
        price: of one GPU for an hour, in whatever currency; None: no cost is told.
    """
    gpu_hours = sum((a.seconds or 0.0) * a.gpus for a in run.attempts) / 3600
    cost = gpu_hours * price if price is not None else None
    tiles = [*_held_out(run), *_training(run), *_time(run, gpu_hours, cost, price)]
    caveat = original_curve.caveat(run)
    standings = [] if caveat else original_curve.standings(run)
    return Summary(run, _sentence(run), tiles, standings, caveat, gpu_hours, cost)


def percent(share: float) -> str:
    """A share for people: 0.4 %, 57 %."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def between(limits: tuple[float, float]) -> str:
    """An interval for people: 52 to 58 %."""
    low, high = percent(limits[0]), percent(limits[1])
    return f"{low.removesuffix(' %')} to {high}"


def _sentence(run: RunData) -> str:
    held = [e for e in main_series(run) if e.figure("sampled") is not None]
    if not held:
        first, last = _ends(run.points("success")[1])
        if last is None:
            return "Nothing can be said of its success yet."
        return (
            f"On the problems it trains on {percent(last)} of its answers are right at step {run.step}, "
            f"{percent(first or 0.0)} at the beginning. What it can do on problems it never saw was not measured."
        )
    end = held[-1]
    said = f"On {end.problems:,} problems it never saw it solves {percent(end.figure('sampled') or 0.0)}"
    limits = end.interval("ci95")
    if limits:
        said += f" (95 %: {between(limits)})"
    if search := random_search(end):
        tries, share = search
        said += f"; a random solver solves {percent(share)} of them in {tries} {'try' if tries == 1 else 'tries'}"
    if len(held) > 1:
        said += f"; at step {held[0].step} it solved {percent(held[0].figure('sampled') or 0.0)}"
    first_tries, last_tries = held[0].figure("tries"), end.figure("tries")
    if last_tries is not None:
        said += f". It makes {last_tries:.1f} tries per answer"
        if len(held) > 1 and first_tries is not None:
            said += f"; at step {held[0].step} it made {first_tries:.1f}"
    return said + "."


def random_search(evaluated: Evaluated) -> tuple[int, float] | None:
    """The random solver's success, after as many tries as an answer of the model makes or the next more that is told.

    Returns:
        The tries, and the share of problems solved by then; None where it was not measured.
    """
    solver = mapping(mapping(evaluated.values.get("baselines")).get("random_solver"))
    at_tries = {int(k): number(v) for k, v in mapping(solver.get("success_at_tries")).items() if _is_count(k)}
    made = evaluated.figure("tries")
    for tries, share in sorted(at_tries.items()):
        if share is not None and made is not None and tries >= made:
            return tries, share
    return None


def _held_out(run: RunData) -> list[Tile]:
    held = main_series(run)
    if held:
        end = held[-1]
        sampled, greedy = end.figure("sampled"), end.figure("greedy")
        limits = end.interval("ci95" if sampled is not None else "greedy_ci95")
        details = [f"95 %: {between(limits)}"] if limits else []
        if sampled is not None and greedy is not None:
            details.append(f"greedy {percent(greedy)}")
        details.append(f"step {end.step}")
        value = sampled if sampled is not None else greedy
        return [Tile("Held-out success", percent(value or 0.0), ", ".join(details))]
    during, counts = run.points("eval_success"), run.points("eval_problems")[1]
    if during[0]:
        limits = wilson(during[1][-1], counts[-1] if counts else 0)
        around = f"95 %: {between(limits)}; " if limits else ""
        detail = f"{around}one sample each, step {during[0][-1]:.0f}"
        return [Tile("Held-out success", percent(during[1][-1]), detail)]
    return [Tile("Held-out success", "–", "not measured: mini-r1 evaluate")]


def _training(run: RunData) -> list[Tile]:
    tiles = []
    for label, figure, form in (
        ("Training success", "success", percent),
        ("Format kept", "rewards/format", percent),
        ("Tries per answer", "tries", "{:.1f}".format),
        ("Tokens per answer", "completion_length", "{:.0f}".format),
    ):
        first, last = _ends(run.points(figure)[1])
        if last is not None:
            where = "" if figure == "success" else "in training; "  # the sentence above tells of held-out problems
            tiles.append(Tile(label, form(last), f"{where}{form(first or 0.0)} at the beginning"))
    return tiles


def _time(run: RunData, gpu_hours: float, cost: float | None, price: float | None) -> list[Tile]:
    seconds = sum(a.seconds or 0.0 for a in run.attempts)
    if not seconds:
        return []
    starts = f"in {len(run.attempts)} starts, " if len(run.attempts) > 1 else ""
    if not gpu_hours:
        return [Tile("Time", duration(seconds), f"{starts}on the CPU, no GPU")]
    paid = f"cost {cost:,.2f} at {price:g} a GPU-hour" if cost is not None else "no price: --price-per-gpu-hour"
    shown = f"{gpu_hours:.1f}" if gpu_hours >= 1 else f"{gpu_hours:.2f}"
    return [Tile("Time", duration(seconds), f"{starts}steps done again included"), Tile("GPU-hours", shown, paid)]


def _ends(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Means of the first and of the last few values."""
    if not values:
        return None, None
    few = max(1, min(FEW_ROWS, len(values) // 2))
    return sum(values[:few]) / few, sum(values[-few:]) / few


# --- tables ---


def recipe_table(runs: Sequence[RunData]) -> list[tuple[str, list[str], bool, bool]]:
    """Every key of the recipes: its value in each run, whether the runs differ in it, whether it is no default."""
    flat = [_flat(run.recipe) for run in runs]
    fields = Recipe.model_fields
    defaults = _flat({name: known.get_default(call_default_factory=True) for name, known in fields.items()})
    keys = list(dict.fromkeys(key for values in flat for key in values))
    table = []
    for key in keys:
        values = [values.get(key, "–") for values in flat]
        changed = any(v != defaults.get(key, "") for v in values)
        table.append((key, values, len(set(values)) > 1, changed))
    return table


def provenance_table(runs: Sequence[RunData]) -> list[tuple[str, list[str], bool]]:
    """Versions, devices and data of each run's last attempt, and whether the runs differ in them."""
    columns: list[dict[str, str]] = []
    for run in runs:
        facts: dict[str, Any] = run.attempts[-1].facts if run.attempts else {}
        versions, model, data = facts.get("versions"), facts.get("model"), run.record.get("data")
        columns.append(
            {
                "kit": text(facts.get("kit")),
                "code": text(facts.get("code_revision")),
                "python": text(facts.get("python")),
                **{text(k): text(v) or "not installed" for k, v in mapping(versions).items()},
                "devices": _devices(facts),
                "DeepSpeed": text(facts.get("deepspeed")) or "no",
                **{f"model: {text(k)}": text(v) for k, v in mapping(model).items() if v is not None},
                **{f"data: {text(k)}": text(v) for k, v in mapping(data).items() if v is not None},
                "command": _command(facts),
            }
        )
    keys = list(dict.fromkeys(key for column in columns for key in column))
    table = []
    for key in keys:
        values = [column.get(key) or "not known" for column in columns]
        table.append((key, values, len(set(values)) > 1))
    return table


def attempt_rows(run: RunData) -> list[list[str]]:
    """Of each start: number, when, steps, how long, where on what."""
    rows = []
    following: list[Attempt | None] = [*run.attempts[1:], None]
    for attempt, after in zip(run.attempts, following, strict=False):  # without any attempt there is still the None
        steps = "none" if attempt.first_step is None else f"{attempt.first_step} to {attempt.last_step}"
        if after is not None and after.first_step and attempt.last_step and after.first_step <= attempt.last_step:
            steps += f" (from {after.first_step} on done again)"
        seconds = attempt.seconds
        rows.append(
            [
                str(attempt.number),
                text(attempt.facts.get("started")) or "not known",
                steps,
                "not known" if seconds is None else duration(seconds),
                text(attempt.facts.get("host")) or "not known",
                _devices(attempt.facts) or "not known",
            ]
        )
    return rows


def evaluation_rows(run: RunData) -> list[list[str]]:
    """Of each evaluation: file, step, problems, greedy and sampled with intervals, pass@k, tries, format."""
    rows = []
    for evaluated in sorted(run.evaluations, key=lambda e: (e.step, e.file)):
        best = ""
        at_k = evaluated.values.get("pass_at_k")
        if isinstance(at_k, dict):
            known = [(int(k), number(v.get("value"))) for k, v in at_k.items() if _is_count(k) and isinstance(v, dict)]
            best = ", ".join(f"@{k} {percent(v)}" for k, v in sorted(known) if v is not None and k > 1)
        rows.append(
            [
                str(evaluated.step),
                f"{evaluated.problems:,}",
                _with_limits(evaluated.figure("greedy"), evaluated.interval("greedy_ci95")),
                _with_limits(evaluated.figure("sampled"), evaluated.interval("ci95")),
                best,
                "" if (value := evaluated.figure("tries")) is None else f"{value:.1f}",
                "" if (value := evaluated.figure("format")) is None else percent(value),
                evaluated.file,
            ]
        )
    return rows


def strata_rows(run: RunData) -> list[list[str]]:
    """Of the newest evaluation: success by how many numbers a problem has, and by whether it needs × or ÷."""
    newest = main_series(run)[-1:]
    if not newest:
        return []
    values = newest[0].values
    by = values.get("by") or {"numbers": values.get("by_size"), "": values.get("by_operators")}
    rows = []
    for stratum, groups in mapping(by).items():
        for value, figures in mapping(groups).items():
            if not isinstance(figures, dict):
                continue

            rows.append(
                [
                    f"{text(value)} {text(stratum)}" if str(value).isdecimal() else text(value),
                    f"{number(figures.get('n')) or 0:,.0f}",
                    _with_limits(number(figures.get("greedy")), interval(figures.get("greedy_ci95"))),
                    _with_limits(number(figures.get("sampled")), interval(figures.get("ci95"))),
                ]
            )
    return rows


def failure_rows(run: RunData) -> list[list[str]]:
    """Of the newest evaluation: why sampled answers fail, the most frequent reason first."""
    newest = main_series(run)[-1:]
    if not newest:
        return []
    evaluated = newest[0]
    sampled = evaluated.problems * (number(evaluated.values.get("samples")) or 1)
    counts = [
        (text(k), number(v))
        for k, v in mapping(evaluated.values.get("failures", evaluated.values.get("reasons"))).items()
    ]
    known = sorted(((k, v) for k, v in counts if v is not None), key=lambda kv: -kv[1])[:SHOWN_REASONS]
    return [[reason, f"{count:,.0f}", percent(count / sampled) if sampled else ""] for reason, count in known]


def _is_count(key: str) -> bool:
    return key.isdecimal() and len(key) < 10


def _with_limits(value: float | None, limits: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return percent(value) + (f" ({between(limits)})" if limits else "")


def _devices(facts: dict[str, Any]) -> str:
    devices = facts.get("devices")
    if not isinstance(devices, list):
        return ""
    names = [text(d) for d in devices[:64]]
    counted = [f"{names.count(n)} × {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names)]
    workers = facts.get("workers")
    said = ", ".join(counted)
    if isinstance(workers, int) and workers > 1:
        said += f"; {workers} workers"
    return said + ("; vLLM on one more" if facts.get("vllm_device") is not None else "")


def _command(facts: dict[str, Any]) -> str:
    command = facts.get("command")
    if not isinstance(command, list) or not command:
        return ""
    return text(" ".join(["mini-r1", *(str(part) for part in command[1:] if isinstance(part, str))]))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if hasattr(value, "model_dump"):
            value = value.model_dump()
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "" if value is None else text(value if isinstance(value, str) else _json(value))
    return flat


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
