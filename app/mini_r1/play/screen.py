"""Answers side by side, while they come and when they are complete; a model's text is shown as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mini_r1.console import printable
from mini_r1.play.players import Answer
from mini_r1.tasks.countdown import task

FEWEST_LINES = 4
"""Lines of each answer while it comes, even on a low terminal."""
SIDE_BY_SIDE = 60
"""Columns from which answers are side by side; on a narrower terminal they are below each other."""
BORDERS = 4
"""Columns of a panel around its text."""


def print_answers(console: Console, answers: Sequence[Answer], problem: task.Problem) -> None:
    """Print complete answers in full, and the exact solver's."""
    console.print(side_by_side(answers, console))
    solution = task.solve(problem)
    shown = f"{solution} = {problem.target}"
    if solution is None:
        gave_up = task.solvable(problem) is None
        shown = "no solution found; the search was stopped" if gave_up else "there is no solution"
    console.print(Text(f"exact solver: {shown}"))


def side_by_side(answers: Sequence[Answer], console: Console, lines: int | None = None) -> Table:
    """Return a panel for each answer; `lines` is the height for the last lines of their text, None shows all."""
    count = max(len(answers), 1)
    columns = count if console.width >= SIDE_BY_SIDE else 1
    if lines is not None:
        lines = max(lines * columns // count, FEWEST_LINES)
    width = max(console.width // columns - BORDERS, 1)
    panels = [_panel(answer, _last_lines(answer, console, width, lines)) for answer in answers]
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    for start in range(0, len(panels), columns):
        grid.add_row(*panels[start : start + columns])
    return grid


def _last_lines(answer: Answer, console: Console, width: int, lines: int | None) -> Text:
    """Return the last lines of the text as they are wrapped: a paragraph is one line to the model."""
    whole = Text(printable("<think>" + answer.text), overflow="fold")
    if lines is None:
        return whole
    tail = Text(whole.plain[-lines * (width + 1) :], overflow="fold")  # more can't be visible
    return Text("\n", overflow="fold").join(tail.wrap(console, width)[-lines:])


def _panel(answer: Answer, text: Text) -> Panel:
    verdict, title = answer.verdict, Text(printable(answer.title))
    if verdict is None:
        return Panel(text, title=title, subtitle=Text(f"{len(answer.ids)} tokens"))
    style = "green" if verdict.equation else "red"
    result = f"{'right' if verdict.equation else 'wrong'}: {printable(verdict.reason)}, {len(answer.ids)} tokens"
    return Panel(Text.assemble(text, "\n\n", (result, style), overflow="fold"), title=title, border_style=style)
