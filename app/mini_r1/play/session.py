"""`mini-r1 play`: ask for problems until the input ends, or answer one for a script.

Answers are shown side by side, while they come and when they are complete; a model's text is shown as plain text.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.play.players import Answer, Player, answer_in_turn
from mini_r1.play.typed_line import split_line

WELCOME = "Type {columns}, such as {example}; an empty line or q ends it."
ENDS = frozenset({"", "q", "quit", "exit"})
FRAMES_PER_S = 12
KEPT_LINES = 8  # lines of the terminal's height that answers in progress leave free
FEWEST_LINES = 4  # lines of each answer while it comes, even on a low terminal
SIDE_BY_SIDE = 60  # columns from which answers are side by side; on a narrower terminal they are below each other
BORDERS = 4  # columns of a panel around its text


@dataclass(frozen=True, slots=True)
class Sampling:
    """How both models answer; a temperature of 0 is greedy."""

    temperature: float = 0.0
    seed: int = 0


def answer_problem(
    players: Sequence[Player], problem: Any, sampling: Sampling, console: Console | None = None
) -> list[Answer]:
    """Return the complete answers, shown on a terminal while they come; raise KitError as `Player.refuse` does."""
    for player in players:
        player.refuse(problem)
    latest: list[Answer] = []
    frames = console or Console(quiet=True)
    # Transient, because a live display can't be longer than the terminal; nothing is drawn if there is none.
    with Live(
        console=frames,
        refresh_per_second=FRAMES_PER_S,
        transient=True,
        get_renderable=lambda: side_by_side(latest, frames, frames.height - KEPT_LINES),
    ):
        for answers in answer_in_turn(players, problem, sampling.temperature, sampling.seed):
            latest[:] = answers
    return latest


def play_one(players: Sequence[Player], problem: Any, sampling: Sampling, console: Console) -> None:
    """Answer one problem on the console, in full, followed by the exact solver's answer."""
    console.print(side_by_side(answer_problem(players, problem, sampling, console), console))
    console.print(Text(printable(players[0].task.solution(problem)[1])))


def play_one_as_json(players: Sequence[Player], problem: Any, sampling: Sampling) -> dict[str, Any]:
    """Answer one problem for --json."""
    answers, task = answer_problem(players, problem, sampling), players[0].task
    return {
        **task.row(problem),
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "models": {player.name: player.title for player in players},
        "answers": {answer.player: answer.to_json() for answer in answers},
        **task.solution(problem)[0],
    }


def play(players: Sequence[Player], sampling: Sampling, console: Console, ask: Callable[[str], str | None]) -> None:
    """Answer problems until `ask` returns None or an end word; an error in the input is shown, and asked again."""
    task = players[0].task
    first, second = task.columns.values()
    console.print(WELCOME.format(columns=f"{first} -> {second}", example=task.typed_example))
    while True:
        line = ask(f"{first} -> {second}: ")
        if line is None or line.strip().lower() in ENDS:
            return
        try:
            given, wanted = split_line(task, line)
            if wanted is None:
                task.read_typed(given, "1")  # report an error in the first part before asking for the second
                wanted = ask(f"{second}: ")
                if wanted is None:
                    return
            play_one(players, task.read_typed(given, wanted), sampling, console)
        except KitError as error:
            console.print(printable(error.message), style="yellow", markup=False)


def ask_at_terminal(question: str) -> str | None:
    """Return a line of standard input, None at its end; the question is shown on a terminal only."""
    if sys.stdin.isatty():
        print(question, end="", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.readline()  # not input(): a line need not be valid UTF-8
    return data.decode("utf-8", errors="replace").rstrip("\r\n") if data else None


# --- the screen ---


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
    whole = Text(printable(answer.prefill + answer.text), overflow="fold")
    if lines is None:
        return whole
    tail = Text(whole.plain[-lines * (width + 1) :], overflow="fold")  # more can't be visible
    return Text("\n", overflow="fold").join(tail.wrap(console, width)[-lines:])


def _panel(answer: Answer, text: Text) -> Panel:
    verdict, title = answer.verdict, Text(printable(answer.title))
    if verdict is None:
        return Panel(text, title=title, subtitle=Text(f"{len(answer.ids)} tokens"))
    style = "green" if verdict.right else "red"
    result = f"{'right' if verdict.right else 'wrong'}: {printable(verdict.reason)}, {len(answer.ids)} tokens"
    return Panel(Text.assemble(text, "\n\n", (result, style), overflow="fold"), title=title, border_style=style)
