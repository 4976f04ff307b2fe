"""The untrained and the trained model of a run, and their answers token by token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.generation.completers import dtype_here
from mini_r1.generation.model import StartingPoint, device, eos_token_ids, load_model, load_tokenizer, refuse_misfit
from mini_r1.generation.prompts import render, token_ids
from mini_r1.generation.sampler import SamplingConfig, stream
from mini_r1.generation.stop_strings import is_truncated
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.manifest import verify
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.answer_tags import THINK
from mini_r1.tasks.registry import find_task
from mini_r1.tasks.task import TaskVerdict


@dataclass(slots=True)
class Answer:
    """One model's answer so far; it has a verdict when it is complete."""

    player: str
    title: str
    ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False  # stays so if the answer reaches the longest length
    verdict: TaskVerdict | None = None
    prefill: str = THINK  # the last line of what it continues

    def to_json(self) -> dict[str, Any]:
        """Return a complete answer for --json."""
        assert self.verdict is not None
        record = self.verdict.record()
        return {
            "completion": self.text,
            "right": bool(self.verdict.right),
            "format": bool(self.verdict.format),
            "reason": self.verdict.reason,
            "tokens": len(self.ids),
            "truncated": not self.ended,
            **({"tries": record["tries"]} if "tries" in record else {}),
        }


class Player:
    """The `untrained` or `trained` model; raises KitError if it cannot be loaded."""

    def __init__(
        self, name: str, title: str, source: str, revision: str | None, tokenizer: Path, recipe: Recipe
    ) -> None:
        self.name = name
        self.title = title
        self._model = load_model(source, revision, dtype_here(), None).to(device()).eval()
        self._tokenizer = load_tokenizer(str(tokenizer), None)
        refuse_misfit(self._model, self._tokenizer)
        self._ends = eos_token_ids(self._model, self._tokenizer)
        self._recipe, self.task = recipe, find_task(recipe.task)

    def refuse(self, problem: Any) -> None:
        """Raise KitError if the tokenizer lacks a number or a text of the problem: the demo's numbers end at 99."""
        unknown = self._tokenizer.unk_token_id
        values = self.task.row(problem).values()
        for part in [part for value in values for part in (value if isinstance(value, list) else [value])]:
            ids = self._tokenizer(str(part), add_special_tokens=False)["input_ids"]
            text = self._tokenizer.decode(ids)
            if (unknown is not None and unknown in ids) or text.strip() != str(part):
                fix = "use a smaller number" if isinstance(part, int) else "use plain letters, digits and signs"
                raise KitError(f"this model cannot read {part}: its tokenizer lacks it; {fix}")

    def answer(self, problem: Any, temperature: float, seed: int) -> Iterator[Answer]:
        """Yield the answer after each token, and once more with its verdict."""
        prefill = self.task.prompt(self._recipe.prompt_style).prefill
        (prompt,) = token_ids(self._tokenizer, render(self.task, self._tokenizer, [problem], self._recipe.prompt_style))
        answer = Answer(self.name, self.title, prefill=prefill.rpartition("\n")[2])
        sampling = SamplingConfig.from_recipe(self._recipe, temperature=temperature)
        tokens = stream(self._model, prompt, sampling, eos_token_ids=self._ends, seed=seed, tokenizer=self._tokenizer)
        for token in tokens:
            answer.ids.append(token)
            answer.text = self._tokenizer.decode(answer.ids, skip_special_tokens=True)
            answer.ended = not is_truncated(answer.ids, answer.text, self._ends, sampling.stop)
            yield answer
        answer.verdict = self.task.judge(answer.text, problem, prefill=prefill)
        yield answer


def load_players(run: RunDir, step: int | None, start: StartingPoint, report: Callable[[str], None]) -> list[Player]:
    """Return the untrained model, if it is available, and the snapshot of a step, None for the newest.

    `report` receives a line about the untrained model. Raise KitError if there is no such snapshot, or it is damaged.
    """
    recipe, complete = load_recipe(run.recipe_file), run.require_snapshots()
    saved = next((saved for saved in complete if step in (None, saved.step)), None)
    if saved is None:
        steps = ", ".join(str(saved.step) for saved in reversed(complete))
        raise KitError(f"{run.path} has no complete snapshot of step {step}; there are: {steps}")
    if damage := verify(saved, run.run_id):
        raise KitError(f"the snapshot {saved.path} is damaged ({damage}): choose another one with --step")
    found = []
    try:
        if start.source is None:
            raise KitError(start.description)
        found.append(Player("untrained", "untrained", start.source, start.revision, saved.path, recipe))
        report(f"untrained: {start.description}")
    except KitError as error:
        report(f"only the trained model plays: {error.message}")
    found.append(Player("trained", f"trained, step {saved.step}", str(saved.path), None, saved.path, recipe))
    return found


def answer_in_turn(players: Sequence[Player], problem: Any, temperature: float, seed: int) -> Iterator[list[Answer]]:
    """Yield the answers of all players after each token of each; the last ones are complete.

    A temperature of 0 takes each most likely token; the seed is the same for all, and other options are the recipe's.
    """
    latest: list[Answer] = []
    for answers in zip_longest(*(player.answer(problem, temperature, seed) for player in players)):
        latest = [new or old for new, old in zip_longest(answers, latest)]
        yield latest
