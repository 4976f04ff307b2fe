"""The rewards of a completion, by name, and its verdict: everything that is known of one completion.

To add a reward, write a function of a `ParsedCompletion` and put `@reward("its_name")` above it; a recipe then names it
with a weight. Keep it linear in the length of the completion, and let no text raise.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mini_r1.tasks.answer_tags import THINK, own_prefill
from mini_r1.tasks.coin_flip import coin_flip
from mini_r1.tasks.reflections import count_reflections

from . import original_scoring
from .calculations import ThoughtLine, thought_lines
from .expression import whole_value
from .parsed_completion import ParsedCompletion, parse_completion
from .problem import Problem
from .style import Style, classify_style

RewardFunction = Callable[[ParsedCompletion], float]

REWARDS: dict[str, RewardFunction] = {}
"""Every reward that a recipe can name."""
VERDICTS = ("format", "equation", "format_original", "equation_original")
"""The rewards that every verdict has, each 0 or 1."""

WORDS_PER_NUMBER = 10
"""Words of thought for each given number that earn the whole `words` reward."""
LENGTH_FULL = 1000
"""Characters up to which `length` pays 1.0; the original's trained answers were about 310 tokens, near this."""
LENGTH_NONE = 4000
"""Characters from which `length` pays nothing; the recipe's 1024 tokens of English are about this."""


@dataclass(frozen=True)
class Verdict:
    """Everything that is known of one completion. What needs a search of the thought is computed when first read."""

    completion: ParsedCompletion
    rewards: dict[str, float]  # VERDICTS and the rewards that were asked for, without weights

    @property
    def format(self) -> int:
        """1 when it keeps the kit's format, else 0."""
        return int(self.rewards["format"])

    @property
    def problem(self) -> Problem:
        """The problem that was asked."""
        return self.completion.problem

    @property
    def right(self) -> int:
        """1 when its answer is right by exact arithmetic, else 0."""
        return int(self.rewards["equation"])

    @property
    def reason(self) -> str:
        """`correct`, or what is wrong; an error of the equation comes before one of the format."""
        format_error = self.completion.format_error
        correct = "correct" if format_error is None else f"correct, but the format is broken: {format_error}"
        return self.completion.equation_error or correct

    @cached_property
    def tries(self) -> int:
        """Calculations tried in the thought, by line: `8 + 2 = 10 - 3 = 7 (too low)` is one. See docs/metrics.md."""
        return sum(bool(line.equations) for line in self._lines)

    @cached_property
    def reflections(self) -> int:
        """Phrases of reflection in the thought; see `style.count_reflections`."""
        return count_reflections(self.completion.thought)

    @cached_property
    def style(self) -> Style:
        """`enumerating`, `wordy` or `neither`; see `style.classify_style`."""
        return classify_style(self._lines)

    @cached_property
    def results(self) -> list[int | None]:
        """The true result of each try, and of the answer unless a try has the same result."""
        nums, answer = self.problem.nums, self.completion.answer
        results = [line.true_result(nums) for line in self._lines if line.equations]
        answered = None if answer is None else whole_value(answer, nums)
        return results if results and (answered is None or answered in results) else [*results, answered]

    @cached_property
    def _lines(self) -> list[ThoughtLine]:
        return list(thought_lines(self.completion.thought))

    def record(self) -> dict[str, Any]:
        """Return what a file of completions holds of one: problem, text, rewards, reason and style; another prefill."""
        return {
            "nums": list(self.completion.problem.nums),
            "target": self.completion.problem.target,
            **own_prefill(self.completion.prefill),
            "completion": self.completion.text,
            "rewards": dict(self.rewards),
            "reason": self.reason,
            "tries": self.tries,
            "reflections": self.reflections,
            "style": self.style,
        }


def judge(completion: str, problem: Problem, names: Iterable[str] = (), prefill: str = THINK) -> Verdict:
    """Return the verdict on a completion, the model's text after the prefill.

    No text raises, and the work is linear in its length. `names` are rewards to compute besides VERDICTS.
    """
    parsed = parse_completion(completion, problem, prefill)
    return Verdict(parsed, {name: REWARDS[name](parsed) for name in dict.fromkeys((*VERDICTS, *names))})


def reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Register the function below under `name`, or raise a ValueError when it is taken."""

    def register(function: RewardFunction) -> RewardFunction:
        if name in REWARDS:
            raise ValueError(f"the reward '{name}' is already defined")
        REWARDS[name] = function
        return function

    return register


@reward("format")
def format_reward(completion: ParsedCompletion) -> float:
    """1 for one thought, one answer block and nothing after it, else 0."""
    return int(completion.format_error is None)


@reward("equation")
def equation_reward(completion: ParsedCompletion) -> float:
    """1 when the last answer after `</think>` is right by exact arithmetic, else 0."""
    return int(completion.equation_error is None)


# What the original's two reward functions pay.
reward("format_original")(original_scoring.format_original)
reward("equation_original")(original_scoring.equation_original)


@reward("words")
def words_reward(completion: ParsedCompletion) -> float:
    """min(1, words of the thought / (10 words for each given number)): the original's second hypothesis.

    A thought that never ends earns nothing: else the reward would pay for running into the length limit.
    """
    if not completion.thought_ends:
        return 0.0
    return min(1.0, len(completion.thought.split()) / (WORDS_PER_NUMBER * len(completion.problem.nums)))


@reward("length")
def length_reward(completion: ParsedCompletion) -> float:
    """1.0 up to 1000 characters, then falling in a straight line to 0.0 at 4000: favours short answers."""
    return min(1.0, max(0.0, (LENGTH_NONE - len(completion.text)) / (LENGTH_NONE - LENGTH_FULL)))


@reward("random")
def random_reward(completion: ParsedCompletion) -> float:
    """Return 0 or 1 with equal probability, by a hash of completion and problem: the random-reward control.

    A run that improves on this reward alone learns from noise, and so may the run that it is compared with.
    """
    problem = completion.problem
    return coin_flip(f"{problem.nums}|{problem.target}|{completion.text}")
