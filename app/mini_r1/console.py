"""Text for people: model output made safe to print, sizes, and progress on standard error."""

from __future__ import annotations

import html
import re
import sys
import time
import unicodedata

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_KEPT = {"\n", "\t"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories with no visible form: controls, bidirectional marks, surrogates, unassigned, line separators."""

SHOWN_CHARACTERS = 400  # characters of a text from a file that are shown in a table or a sentence
_MARKUP = re.compile(r"([\\`*_\[\]|~$#])")


def printable(text: str) -> str:
    """Return text with control and invisible characters escaped: a completion may hold terminal escapes."""
    if text.isascii() and all(c in _KEPT or " " <= c <= "~" for c in text):
        return text
    return "".join(
        c if c in _KEPT or unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode() for c in text
    )


def text(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a value as text on one line, with controls made visible, cut to a length; empty for None."""
    if value is None:
        return ""
    try:
        whole = str(value)
    except ValueError:  # an integer of thousands of digits
        return "a number too long to show"
    line = " ".join(printable(whole[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def as_markdown(text: object) -> str:
    """Return untrusted text for Markdown, on one line, which makes no heading, link, tag or cell."""
    line = " ".join(printable(str(text)).split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def shown_bytes(size: float) -> str:
    """Return a size in GiB, below 1 GiB in MiB, below 0.1 MiB in KiB."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"


def progress_console() -> Console:
    """Return a console on standard error, so that standard output holds results alone."""
    # A notebook's stream calls itself a terminal, and would show each frame of a bar.
    is_terminal = False if "ipykernel" in sys.modules else None
    return Console(stderr=True, highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=is_terminal)


class ProgressLine:
    """Progress of long work: a bar on a terminal, elsewhere a plain line every PLAIN_EVERY seconds."""

    PLAIN_EVERY = 10.0

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._printed = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            done = TextColumn("{task.description} {task.completed}/{task.total}")
            status = TextColumn("{task.fields[status]}")
            self._bar = Progress(done, BarColumn(24), status, TimeRemainingColumn(compact=True), console=console)
            self._task = self._bar.add_task(title, total=total, status="")

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, status: str = "") -> None:
        """Show that `done` units are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=status)
        elif done == self._total or time.monotonic() - self._printed > self.PLAIN_EVERY:
            self._printed = time.monotonic()
            self._console.print(f"{self._title} {done}/{self._total}  {status}".rstrip())
