"""`mini-r1 play`: ask for problems until the input ends, or answer one for a script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.play.players import Answer, Player, answer_in_turn
from mini_r1.play.screen import print_answers, side_by_side
from mini_r1.play.typed_problem import read_problem, split_line
from mini_r1.tasks.countdown import task

WELCOME = "Type numbers and a target, such as 3 5 9 -> 1; an empty line or q ends it."
ENDS = frozenset({"", "q", "quit", "exit"})
FRAMES_PER_S = 12
KEPT_LINES = 8
"""Lines of the terminal's height that answers in progress leave free."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How both models answer; a temperature of 0 is greedy."""

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise KitError for a value that is out of range."""
        if not 0 <= self.temperature < 100:
            raise KitError(f"--temperature must be 0 (greedy) or above, found {self.temperature:g}")
        if not 0 <= self.seed < 1 << 63:
            raise KitError(f"--seed must be a whole number from 0, found {self.seed}")


def answer_problem(
    players: Sequence[Player], problem: task.Problem, sampling: Sampling, console: Console | None = None
) -> list[Answer]:
    """Return the complete answers; on a terminal they are shown while they come.

    Raises:
        KitError: a model cannot read one of the numbers.
    """
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


def play_one(players: Sequence[Player], problem: task.Problem, sampling: Sampling, console: Console) -> None:
    """Answer one problem on the console; raise KitError if a model cannot read one of its numbers."""
    print_answers(console, answer_problem(players, problem, sampling, console), problem)


def play_one_as_json(players: Sequence[Player], problem: task.Problem, sampling: Sampling) -> dict[str, Any]:
    """Answer one problem for --json; `solvable` is None if the search was stopped.

    Raises:
        KitError: a model cannot read one of its numbers.
    """
    answers = answer_problem(players, problem, sampling)
    return {
        "nums": list(problem.nums),
        "target": problem.target,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "models": {player.name: player.title for player in players},
        "answers": {answer.player: answer.to_json() for answer in answers},
        "solution": task.solve(problem),
        "solvable": task.solvable(problem),
    }


def play(players: Sequence[Player], sampling: Sampling, console: Console, ask: Callable[[str], str | None]) -> None:
    """Answer problems until `ask` returns None or an end word; an error in the input is shown, and asked again."""
    console.print(WELCOME)
    while True:
        line = ask("numbers -> target: ")
        if line is None or line.strip().lower() in ENDS:
            return
        try:
            numbers, target = split_line(line)
            if target is None:
                read_problem(numbers, "1")  # report an error in the numbers before asking for the target
                target = ask("target: ")
                if target is None:
                    return
            play_one(players, read_problem(numbers, target), sampling, console)
        except KitError as error:
            console.print(printable(error.message), style="yellow", markup=False)


def ask_at_terminal(question: str) -> str | None:
    """Return a line of standard input, None at its end; the question is shown on a terminal only."""
    if sys.stdin.isatty():
        print(question, end="", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.readline()  # not input(): a line need not be valid UTF-8
    return data.decode("utf-8", errors="replace").rstrip("\r\n") if data else None
