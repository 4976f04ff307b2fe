"""`mini-r1 samples`: a run's completions at the terminal, filtered: training's, or those to held-out problems.

No torch. A long run has a gigabyte of them: they are read line by line. They hold a model's text, which is made
printable; a field that is missing or of another type is shown as unknown.
"""

import json
import re
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Console
from rich.text import Text

from mini_r1.console import printable, text
from mini_r1.errors import KitError
from mini_r1.run.reader import read_completions, read_held_out_completions
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.answer_tags import prefill_of
from mini_r1.tasks.registry import is_right, task_of_row

SHOWN_CHARACTERS = 4_000  # characters of one completion, without --full; the original's have about 1,000
GREP_S = 10.0  # longest search in one completion: a good expression takes milliseconds, one that backtracks takes years
PROGRESS_S = 5.0  # seconds without a match between two lines of progress
NO_COMPLETIONS = "no completions in it yet: they are written after each step (attempts/N/completions.jsonl)"
NO_ANSWERS = "no answers to held-out problems in it yet: `mini-r1 evaluate` keeps them (evaluation/*-completions.jsonl)"

KINDS = ("greedy", "sampled")  # kinds of answers to a held-out problem

_STEPS = re.compile(r"\s*(\d{1,15})\s*(?:-\s*(\d{1,15})\s*)?")


@dataclass(frozen=True, slots=True)
class CompletionFilter:
    """Which completions to show; None lets everything through."""

    steps: tuple[int, int] | None = None  # first and last step
    right: bool | None = None  # whether the answer is right
    reason: str | None = None  # a part of the verdict's reason; case doesn't count
    grep: re.Pattern[str] | None = None  # found in the completion

    def passes(self, row: dict[str, Any]) -> bool:
        """Return whether a row passes, apart from `grep`."""
        return (
            (self.steps is None or self.steps[0] <= row["step"] <= self.steps[1])
            and (self.right is None or is_right(row) is self.right)
            and (self.reason is None or self.reason.lower() in _text(row, "reason").lower())
        )


def parse_filter(step: str | None, right: bool | None, reason: str | None, grep: str | None) -> CompletionFilter:
    """Return the filter that options ask for, with steps such as `50` or `50-100`; an invalid one is a KitError."""
    steps = None
    if step is not None:
        match = _STEPS.fullmatch(step)
        if match is None:
            raise KitError(f"--step must be a step or a range of them, such as 50 or 50-100, found {step!r}")
        steps = (int(match[1]), int(match[2] or match[1]))
        if steps[0] > steps[1]:
            raise KitError(f"--step {step} ends before it begins: the lower step comes first")
    pattern = None
    if grep is not None:
        try:
            pattern = re.compile(grep, re.IGNORECASE)
        except (re.error, RecursionError, OverflowError) as error:
            raise KitError(
                f"--grep must be a regular expression, and {grep!r} is none ({error}): put a backslash before "
                r"characters such as ( + * ?"
            ) from error
    return CompletionFilter(steps, right, reason, pattern)


def filter_completions(
    rows: Iterable[dict[str, Any]], which: CompletionFilter, progress: Console
) -> Iterator[dict[str, Any]]:
    """Yield the rows that pass, and print progress while none does; only for the main thread if it searches."""
    printed = time.monotonic()
    for row in rows:
        if which.passes(row) and (which.grep is None or _search(which.grep, row)):
            yield row
            printed = time.monotonic()
        elif time.monotonic() - printed > PROGRESS_S:
            printed = time.monotonic()
            progress.print(f"searched up to step {row['step']}", markup=False)


def _search(pattern: re.Pattern[str], row: dict[str, Any]) -> bool:
    """Return whether a completion matches; a search of more than GREP_S, as for (a+)+$, is a KitError."""

    def stop(*_: object) -> None:
        raise KitError(
            f"--grep {pattern.pattern!r} takes more than {GREP_S:g} s on one completion of step {row['step']}: "
            "it backtracks; take out a repetition within a repetition, such as (a+)+"
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, GREP_S)
    try:
        return pattern.search(_text(row, "completion")) is not None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def print_completions(
    run: RunDir,
    which: CompletionFilter,
    *,
    held_out: bool = False,
    limit: int,
    last: bool,
    full: bool,
    as_json: bool,
    out: Console,
    progress: Console,
) -> None:
    """Print training's completions or the kept answers to held-out problems to `out`, and remarks to `progress`.

    At most `limit` of them, the first or the last; 0 is all. With `as_json`, one line of JSON each, as in the file.
    """
    read = read_held_out_completions if held_out else read_completions
    rows = filter_completions(read(run), which, progress)
    if limit:
        rows = iter(deque(rows, maxlen=limit)) if last else islice(rows, limit)
    count = 0
    for row in rows:
        count += 1
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            out.print(format_completion(row, None if full else SHOWN_CHARACTERS), soft_wrap=True)
    if count == 0:
        nothing = next(read(run), None) is None
        why = (NO_ANSWERS if held_out else NO_COMPLETIONS) if nothing else "none of its completions matches"
        progress.print(f"{printable(str(run.path))}: {why}", markup=False)
    elif count == limit:
        progress.print(f"the {'last' if last else 'first'} {limit}; --limit 0 shows all that match", markup=False)


def format_completion(row: dict[str, Any], most: int | None) -> Text:
    """Return a row of completions.jsonl for people, with at most `most` characters of the completion."""
    right = is_right(row)
    verdict = {True: "right", False: "wrong", None: "verdict unknown"}[right]
    reason = printable(_text(row, "reason")) or "no reason given"
    parts = [f"step {row['step']}", *([row["kind"]] if row.get("kind") in KINDS else [])]
    parts.append(" -> ".join(_shorten(row.get(column)) for column in task_of_row(row).columns))
    parts.append(verdict if reason == "correct" else f"{verdict}: {reason}")
    parts += [f"{key} {_shorten(row[key])}" for key in ("tokens", "tries", "reflections") if type(row.get(key)) is int]
    if row.get("truncated") is True:
        parts.append("cut off at the maximum length")
    text = Text(" | ".join(parts), style={True: "bold green", False: "bold red", None: "bold"}[right])
    completion = _text(row, "completion")
    shown = completion[:most]
    text.append(f"\n{printable(prefill_of(row) + shown)}\n", style="not bold default")
    if len(shown) < len(completion):
        text.append(f"... and {len(completion) - len(shown):,} more characters: --full shows them\n", style="dim")
    return text


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _shorten(value: object) -> str:
    """Return a value as JSON; a hostile file may hold anything in the place of a number."""
    return "?" if value is None else text(json.dumps(value), 60)
