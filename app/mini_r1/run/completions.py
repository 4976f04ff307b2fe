"""`mini-r1 samples`: a run's completions at the terminal, filtered: training's, or those to held-out problems.

No torch. The file of a long run has a gigabyte: it is read line by line, and of each step the highest attempt counts.
It holds a model's text, so that is made printable; a field that is missing or of another kind is shown as unknown.
"""

from __future__ import annotations

import contextlib
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

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.run.run_dir import RunDir

SHOWN_CHARACTERS = 4_000
"""Of one completion, unless all of it is wanted; the original's answers have about 1,000."""
GREP_S = 10.0
"""For one completion: a sound expression takes milliseconds, one that starts over for ever takes years."""
SAY_EVERY_S = 5.0
"""Between two signs of life while nothing matches."""
NO_COMPLETIONS = "no completions in it yet: they are written after each step (attempts/N/completions.jsonl)"
NO_ANSWERS = "no answers to held-out problems in it yet: `mini-r1 evaluate` keeps them (evaluation/*-completions.jsonl)"

KINDS = ("greedy", "sampled")
"""What an answer to a held-out problem may be."""

_STEPS = re.compile(r"\s*(\d{1,15})\s*(?:-\s*(\d{1,15})\s*)?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which completions; None lets everything through.

    Args:
        steps: first and last step.
        right: whether the equation is right.
        reason: part of the verdict's reason, in any case.
        grep: found in the completion.
    """

    steps: tuple[int, int] | None = None
    right: bool | None = None
    reason: str | None = None
    grep: re.Pattern[str] | None = None

    def takes(self, row: dict[str, Any], search: Search | None) -> bool:
        """Whether this row is wanted, by a search for `grep`."""
        if self.steps is not None and not self.steps[0] <= row["step"] <= self.steps[1]:
            return False
        if self.right is not None and is_right(row) is not self.right:
            return False
        if self.reason is not None and self.reason.lower() not in _text(row, "reason").lower():
            return False
        return self.grep is None or (search is not None and search.found(row))


def wanted(step: str | None, right: bool | None, reason: str | None, grep: str | None) -> Wanted:
    """From the command line.

    Args:
        step: `50` or `50-100`.
        right: see `Wanted`.
        reason: see `Wanted`.
        grep: a regular expression; case does not count.

    Raises:
        KitError: a step or an expression that is none.
    """
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
    return Wanted(steps, right, reason, pattern)


def matching(rows: Iterable[dict[str, Any]], which: Wanted, console: Console) -> Iterator[dict[str, Any]]:
    """The rows that are wanted, in their order; says on the console how far it is when that takes long."""
    told = time.monotonic()
    with contextlib.nullcontext() if which.grep is None else Search(which.grep) as search:
        for row in rows:
            if which.takes(row, search):
                yield row
                told = time.monotonic()
            elif time.monotonic() - told > SAY_EVERY_S:
                told = time.monotonic()
                console.print(f"read as far as step {row['step']}", markup=False)


def show(
    run: RunDir,
    which: Wanted,
    *,
    held_out: bool = False,
    limit: int,
    last: bool,
    full: bool,
    as_json: bool,
    out: Console,
    say: Console,
) -> int:
    """Print completions.

    Args:
        run: where.
        which: what is wanted.
        held_out: answers to held-out problems, which an evaluation kept, and not those of training.
        limit: so many of them; 0 is all.
        last: the last ones and not the first.
        full: all of each completion, however long.
        as_json: a line of JSON for each, as it is in the file.
        out: for the completions.
        say: for remarks.

    Returns:
        How many.
    """
    read = run.held_out_completions if held_out else run.completions
    rows = matching(read(), which, say)
    if limit:
        rows = iter(deque(rows, maxlen=limit)) if last else islice(rows, limit)
    count = 0
    for row in rows:
        count += 1
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            out.print(entry(row, SHOWN_CHARACTERS if not full else None), soft_wrap=True)
    if count == 0:
        nothing = NO_ANSWERS if held_out else NO_COMPLETIONS
        words = nothing if next(read(), None) is None else "none of its completions matches"
        say.print(f"{printable(str(run.path))}: {words}", markup=False)
    elif count == limit:
        order = "last" if last else "first"
        say.print(f"the {order} {limit}; --limit 0 shows all that match", markup=False)
    return count


def entry(row: dict[str, Any], most: int | None) -> Text:
    """One completion for people.

    Args:
        row: of completions.jsonl.
        most: characters of the completion that are shown; None is all of them.
    """
    right = is_right(row)
    known = {True: "right", False: "wrong", None: "verdict unknown"}[right]
    numbers = f"{_short(row.get('nums'))} -> {_short(row.get('target'))}"
    reason = printable(_text(row, "reason")) or "no reason given"
    parts = [f"step {row['step']}", *([row["kind"]] if row.get("kind") in KINDS else []), numbers]
    parts.append(known if reason == "correct" else f"{known}: {reason}")
    parts += [f"{key} {_short(row[key])}" for key in ("tokens", "tries", "reflections") if type(row.get(key)) is int]
    if row.get("truncated") is True:
        parts.append("cut off at the longest length")
    text = Text(" | ".join(parts), style={True: "bold green", False: "bold red", None: "bold"}[right])
    completion = _text(row, "completion")
    shown = completion if most is None else completion[:most]
    text.append(f"\n<think>{printable(shown)}\n", style="not bold default")
    if len(shown) < len(completion):
        text.append(f"... and {len(completion) - len(shown):,} more characters: --full shows them\n", style="dim")
    return text


def is_right(row: dict[str, Any]) -> bool | None:
    """Whether the equation is right; None where the row does not say it."""
    rewards = row.get("rewards")
    value = rewards.get("equation") if isinstance(rewards, dict) else None
    return bool(value) if isinstance(value, int | float) else None


class Search:
    """A search for an expression, ended when it takes for ever, as (a+)+$ does; `with` it, in the main thread.

    One timer ticks for all rows: to set one for each would take longer than most searches.
    """

    def __init__(self, grep: re.Pattern[str]) -> None:
        self._grep = grep
        self._began: float | None = None
        self._step: object = None

    def __enter__(self) -> Search:
        self._before = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, GREP_S / 4, GREP_S / 4)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def found(self, row: dict[str, Any]) -> bool:
        """Whether the expression is in the row's completion.

        Raises:
            KitError: nobody knows.
        """
        self._began, self._step = time.monotonic(), row["step"]
        try:
            return self._grep.search(_text(row, "completion")) is not None
        finally:
            self._began = None

    def _tick(self, number: int, frame: object) -> None:
        if self._began is not None and time.monotonic() - self._began > GREP_S:
            raise KitError(
                f"--grep {self._grep.pattern!r} takes more than {GREP_S:g} s on one completion of step {self._step}: "
                "it goes over the text again and again; take out a repetition within a repetition, such as (a+)+"
            )


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _short(value: object) -> str:
    """Numbers as JSON has them; a hostile file may hold anything there."""
    if value is None:
        return "?"
    text = printable(json.dumps(value))
    return text if len(text) <= 60 else text[:60] + "..."
