"""Two answers side by side, while they come and when they are there; a model's text is text and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mini_r1.console import printable
from mini_r1.play.models import Answer, Player
from mini_r1.tasks.countdown import task

FRAMES_PER_S = 12
KEPT_LINES = 8
"""Of the terminal's height for what is around the answers."""
FEWEST_LINES = 4
"""Of each answer while it comes, however low the terminal is."""
SIDE_BY_SIDE = 60
"""Columns of a terminal from which answers stand beside each other; on a narrower one below each other."""
BORDERS = 4
"""Columns of a panel that are not its text's."""


class Screen:
    """Shows answers while they come, as `with Screen(...) as screen`; nothing moves where there is no terminal.

    Args:
        console: where.
        playing: who answers, from left to right.
    """

    def __init__(self, console: Console, playing: Sequence[Player]) -> None:
        self._console = console
        self._titles = {player.name: player.words for player in playing}
        self._live: Live | None = None
        self._answers: Sequence[Answer] = ()

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            # Gone at the end, when all of it is printed: a live display cannot be longer than the terminal.
            self._live = Live(
                console=self._console, refresh_per_second=FRAMES_PER_S, transient=True, get_renderable=self._coming
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, answers: Sequence[Answer]) -> None:
        """They have grown; drawn at the next frame, not for each token."""
        self._answers = answers

    def _coming(self) -> Table:
        return side_by_side(self._answers, self._titles, self._console, most_lines=self._console.height - KEPT_LINES)

    def final(self, answers: Sequence[Answer], problem: task.Problem) -> None:
        """All of both, and the exact solver's answer."""
        self._console.print(side_by_side(answers, self._titles, self._console, most_lines=None))
        solution = task.solve(problem)
        answer = f"{solution} = {problem.target}"
        if solution is None:
            unknown = task.solvable(problem) is None
            answer = "no solution found, and the search was given up" if unknown else "there is no solution"
        self._console.print(Text(f"exact solver: {answer}"))


def side_by_side(
    answers: Sequence[Answer], titles: dict[str, str], console: Console, *, most_lines: int | None
) -> Table:
    """Panels beside one another, or below one another where the console is narrow.

    Args:
        answers: what has come of them.
        titles: of each model's name.
        console: for its width.
        most_lines: on the screen for the text: of a long answer the last ones; None is all of it.
    """
    beside = console.width >= SIDE_BY_SIDE
    columns = max(len(answers), 1) if beside else 1
    if most_lines is not None:
        most_lines = max(most_lines // (1 if beside else max(len(answers), 1)), FEWEST_LINES)
    width = max(console.width // columns - BORDERS, 1)
    panels = [
        _panel(answer, titles.get(answer.name, answer.name), _last_lines(answer, console, width, most_lines))
        for answer in answers
    ]
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    for start in range(0, len(panels), columns):
        grid.add_row(*panels[start : start + columns])
    return grid


def _last_lines(answer: Answer, console: Console, width: int, most_lines: int | None) -> Text:
    """The answer's text, or the end of it as it is broken into lines: a paragraph is one line only to its writer."""
    whole = Text(printable("<think>" + answer.text), overflow="fold")
    if most_lines is None:
        return whole
    tail = Text(whole.plain[-most_lines * (width + 1) :], overflow="fold")  # no more can be seen
    return Text("\n", overflow="fold").join(tail.wrap(console, width)[-most_lines:])


def _panel(answer: Answer, title: str, text: Text) -> Panel:
    verdict = answer.verdict
    if verdict is None:
        return Panel(text, title=Text(printable(title)), subtitle=Text(f"{len(answer.ids)} tokens"))
    style = "green" if verdict.equation else "red"
    said = f"{'right' if verdict.equation else 'wrong'}: {printable(verdict.reason)}, {len(answer.ids)} tokens"
    body = Text.assemble(text, "\n\n", (said, style), overflow="fold")
    return Panel(body, title=Text(printable(title)), border_style=style)
