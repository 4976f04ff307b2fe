"""Text for people: model output made safe to print, and where progress goes."""

from __future__ import annotations

import html
import re
import time
import unicodedata

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_KEPT = {"\n", "\t"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories with no visible form: controls, bidirectional marks, surrogates, unassigned, line separators."""

_MARKUP = re.compile(r"([\\`*_\[\]|~$#])")


def printable(text: str) -> str:
    """The text with every control and invisible character written out as an escape.

    A completion may hold anything, terminal escapes and right-to-left marks included; after this it is only text.
    """
    if text.isascii() and all(c in _KEPT or " " <= c <= "~" for c in text):
        return text
    return "".join(c if c in _KEPT or unicodedata.category(c) not in _HIDDEN else _escaped(c) for c in text)


def as_markdown(text: object) -> str:
    """Text from outside as Markdown shows it: itself, on one line; no heading, link, tag or cell comes of it."""
    line = " ".join(printable(str(text)).split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def shown_bytes(size: float) -> str:
    """A number of bytes for people: in GiB, below one in MiB, below a tenth of one in KiB."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"


def progress_console() -> Console:
    """Progress and remarks go to standard error, so that standard output holds results alone."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class ProgressLine:
    """Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere.

    Args:
        console: where to draw.
        title: what is being done.
        total: units of work.
    """

    PLAIN_EVERY = 10.0
    """Seconds between two plain lines: enough to see life in a log, few enough to read it."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._printed = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description} {task.completed}/{task.total}"), BarColumn(24))
            self._bar = Progress(
                *columns, TextColumn("{task.fields[status]}"), TimeRemainingColumn(compact=True), console=console
            )
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
