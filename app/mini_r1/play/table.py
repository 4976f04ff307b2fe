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
from mini_r1.countdown import task
from mini_r1.play.models import Answer, Player

FRAMES_PER_S = 12
KEPT_LINES = 8
"""Of the terminal's height for what is around the answers."""


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

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            # Gone at the end, when all of it is printed: a live display cannot be longer than the terminal.
            self._live = Live(console=self._console, refresh_per_second=FRAMES_PER_S, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, answers: Sequence[Answer]) -> None:
        """They have grown."""
        if self._live is not None:
            self._live.update(side_by_side(answers, self._titles, max(self._console.height - KEPT_LINES, 4)))

    def final(self, answers: Sequence[Answer], problem: task.Problem) -> None:
        """All of both, and the exact solver's answer."""
        self._console.print(side_by_side(answers, self._titles, None))
        solution = task.solve(problem)
        answer = "there is no solution" if solution is None else f"{solution} = {problem.target}"
        self._console.print(Text(f"exact solver: {answer}"))


def side_by_side(answers: Sequence[Answer], titles: dict[str, str], most_lines: int | None) -> Table:
    """Panels beside one another; of long answers the last lines, or all of them."""
    grid = Table.grid(expand=True)
    for _ in answers:
        grid.add_column(ratio=1)
    grid.add_row(*(_panel(answer, titles.get(answer.name, answer.name), most_lines) for answer in answers))
    return grid


def _panel(answer: Answer, title: str, most_lines: int | None) -> Panel:
    text = printable("<think>" + answer.text)
    if most_lines is not None:
        text = "\n".join(text.split("\n")[-most_lines:])
    verdict = answer.verdict
    if verdict is None:
        return Panel(
            Text(text, overflow="fold"), title=Text(printable(title)), subtitle=Text(f"{len(answer.ids)} tokens")
        )
    style = "green" if verdict.equation else "red"
    said = f"{'right' if verdict.equation else 'wrong'}: {printable(verdict.reason)}, {len(answer.ids)} tokens"
    body = Text.assemble(text, "\n\n", (said, style), overflow="fold")
    return Panel(body, title=Text(printable(title)), border_style=style)
