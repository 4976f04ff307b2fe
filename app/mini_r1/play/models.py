"""The two models that play, and their answers while they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.generation.completers import dtype_here
from mini_r1.generation.model import device, eos_token_ids, load_model, load_tokenizer, refuse_misfit
from mini_r1.generation.prompts import render, token_ids
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.generation.stream import stream
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.manifest import Saved, verify
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown import task


@dataclass(slots=True)
class Answer:
    """One model's answer to one problem, as far as it has come."""

    name: str
    """`untrained` or `trained`."""
    problem: task.Problem
    ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    """By the model; else it was cut at the longest length, or is still coming."""
    verdict: task.Verdict | None = None
    """When all of it is there."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        assert self.verdict is not None
        return {
            "completion": self.text,
            "right": bool(self.verdict.equation),
            "format": bool(self.verdict.format),
            "reason": self.verdict.reason,
            "tokens": len(self.ids),
            "truncated": not self.ended,
            "tries": task.tries(self.text),
        }


class Player:
    """A model that answers.

    Args:
        name: `untrained` or `trained`.
        words: which one it is, in short, for people.
        source: directory or hub id.
        revision: of the hub id.
        tokenizer: where the tokenizer is.
        recipe: for the prompt and the longest completion.

    Raises:
        KitError: it cannot be loaded.
    """

    def __init__(
        self, name: str, words: str, source: str, revision: str | None, tokenizer: Path, recipe: Recipe
    ) -> None:
        self.name = name
        self.words = words
        self._model = load_model(source, revision, dtype_here(), None).to(device()).eval()
        self._tokenizer = load_tokenizer(str(tokenizer), None)
        refuse_misfit(self._model, self._tokenizer)
        self._ends = eos_token_ids(self._model, self._tokenizer)
        self._style = recipe.prompt_style
        self._longest = recipe.max_completion_length

    def refuse(self, problem: task.Problem) -> None:
        """Some tokenizer does not know every number: the demo's ends at 99.

        Raises:
            KitError: this one does not know one of the problem's.
        """
        unknown = self._tokenizer.unk_token_id
        for number in (*problem.nums, problem.target):
            ids = self._tokenizer(str(number), add_special_tokens=False)["input_ids"]
            text = self._tokenizer.decode(ids)
            if (unknown is not None and unknown in ids) or text.strip() != str(number):
                raise KitError(f"this model cannot read {number}: its tokenizer does not know it; take a smaller one")

    def answer(self, problem: task.Problem, temperature: float, seed: int) -> Iterator[Answer]:
        """The answer after each token; the last one has a verdict."""
        (prompt,) = token_ids(self._tokenizer, render(self._tokenizer, [problem], self._style))
        answer = Answer(self.name, problem)
        sampling = SamplingConfig(self._longest, temperature)
        for token in stream(self._model, prompt, sampling, eos_token_ids=self._ends, seed=seed):
            answer.ids.append(token)
            answer.ended = token in self._ends
            answer.text = self._tokenizer.decode(answer.ids, skip_special_tokens=True)
            yield answer
        answer.verdict = task.judge(answer.text, problem)
        yield answer


def players(run: RunDir, step: int | None, start: StartingPoint, say: Callable[[str], None]) -> list[Player]:
    """The untrained model, where it is known, and a snapshot.

    Args:
        run: the run directory.
        step: of the snapshot; None is the newest.
        start: what the run began with.
        say: hears what is missing.

    Raises:
        KitError: there is no such snapshot.
    """
    recipe = load_recipe(run.recipe_file)
    saved = _snapshot(run, step)
    found = []
    if start.source is None:
        say(f"the trained model plays alone: {start.words}")
    else:
        try:
            found.append(Player("untrained", "untrained", start.source, start.revision, saved.path, recipe))
            say(f"untrained: {start.words}")
        except KitError as error:
            say(f"the trained model plays alone: {error.message}")
    found.append(Player("trained", f"trained, step {saved.step}", str(saved.path), None, saved.path, recipe))
    return found


def answers(
    playing: Sequence[Player],
    problem: task.Problem,
    temperature: float,
    seed: int,
    on_change: Callable[[list[Answer]], None] | None = None,
) -> list[Answer]:
    """Both answers, a token of each in turn.

    Args:
        playing: who answers.
        problem: what is asked.
        temperature: 0 is each token's most likely one.
        seed: of the draws, the same for both.
        on_change: called after each round of tokens.
    """
    coming = {player.name: player.answer(problem, temperature, seed) for player in playing}
    latest: dict[str, Answer] = {}
    while coming:
        for name in list(coming):
            answer = next(coming[name], None)
            if answer is None:
                del coming[name]
            else:
                latest[name] = answer
        if on_change is not None and latest:
            on_change(list(latest.values()))
    return list(latest.values())


def _snapshot(run: RunDir, step: int | None) -> Saved:
    complete = run.require_snapshots()
    for saved in complete:
        if step in (None, saved.step):
            fault = verify(saved, run.run_id)
            if fault is not None:
                raise KitError(f"the snapshot {saved.path} is damaged ({fault}): choose another one with --step")
            return saved
    steps = ", ".join(str(saved.step) for saved in reversed(complete))
    raise KitError(f"{run.path} has no complete snapshot of step {step}; there are: {steps}")
