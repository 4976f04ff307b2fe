"""`mini-r1 play`: asks for problems until nothing more is typed, or answers one for a script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mini_r1.console import printable
from mini_r1.errors import KitError
from mini_r1.play.asking import in_one_line, problem_of
from mini_r1.play.models import Player, answers
from mini_r1.play.screen import Screen
from mini_r1.tasks.countdown import task

WELCOME = "Numbers and a target, such as 3 5 9 -> 1; nothing or q ends it."
ENDS = frozenset({"", "q", "quit", "exit"})

Ask = Callable[[str], str | None]
"""Asks for a line; None when there is no more."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How both models answer."""

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if not 0 <= self.temperature < 100:
            raise KitError(f"--temperature must be 0 (greedy) or above, found {self.temperature:g}")
        if not 0 <= self.seed < 1 << 63:
            raise KitError(f"--seed must be a whole number from 0, found {self.seed}")


def one(playing: Sequence[Player], problem: task.Problem, sampling: Sampling, console: Console) -> None:
    """Answer one problem on the console.

    Raises:
        KitError: a model cannot read one of its numbers.
    """
    for player in playing:
        player.refuse(problem)
    with Screen(console, playing) as screen:
        done = answers(playing, problem, sampling.temperature, sampling.seed, screen.update)
    screen.final(done, problem)


def one_as_json(playing: Sequence[Player], problem: task.Problem, sampling: Sampling) -> dict[str, Any]:
    """Answer one problem for a script: `nums`, `target`, `temperature`, `seed`, `answers`, `solution` and
    `solvable` (None where the search was given up).

    Raises:
        KitError: a model cannot read one of its numbers.
    """
    for player in playing:
        player.refuse(problem)
    done = answers(playing, problem, sampling.temperature, sampling.seed)
    return {
        "nums": list(problem.nums),
        "target": problem.target,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "models": {player.name: player.words for player in playing},
        "answers": {answer.name: answer.to_json() for answer in done},
        "solution": task.solve(problem),
        "solvable": task.solvable(problem),
    }


def ask_and_answer(playing: Sequence[Player], sampling: Sampling, console: Console, ask: Ask) -> None:
    """Until nothing more is typed; what is wrong with an input is said, and asked again."""
    console.print(WELCOME)
    while True:
        line = ask("numbers -> target: ")
        if line is None or line.strip().lower() in ENDS:
            return
        try:
            numbers, target = in_one_line(line)
            if target is None:
                problem_of(numbers, "1")  # what is wrong with the numbers is said before the target is asked for
                target = ask("target: ")
                if target is None:
                    return
            one(playing, problem_of(numbers, target), sampling, console)
        except KitError as error:
            console.print(printable(error.message), style="yellow", markup=False)


def ask_at_terminal(question: str) -> str | None:
    """From standard input, line by line; with a question where someone can see it."""
    if sys.stdin.isatty():
        print(question, end="", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.readline()  # not input(): a line need not be valid UTF-8
    return data.decode("utf-8", errors="replace").rstrip("\r\n") if data else None
