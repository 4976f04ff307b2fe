"""The interface of a task: everything that training, evaluation, report, play and the data commands know of one.

A task is a subclass of `Task` in a folder here, and a line in registry.py; docs/tasks.md shows how to add one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mini_r1.tasks.answer_tags import THINK, prefill_of
from mini_r1.tasks.columns import Columns
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.prompt_file import Prompt, read_prompt

Progress = Callable[[int], None]
"""Called with the number of rows done so far; what it raises ends the work."""


class TaskProblem(Protocol):
    """One problem of a task, hashable."""

    @property
    def key(self) -> Hashable:
        """Equal for problems that training and held-out part must not share."""

    @property
    def cluster(self) -> Hashable:
        """Equal for problems that one draw decides together: the clusters of a confidence interval."""


class TaskVerdict(Protocol):
    """Everything that is known of one completion."""

    @property
    def rewards(self) -> dict[str, float]:
        """Without weights: `format`, the task's `success`, each 0 or 1, and those that were asked for."""

    @property
    def problem(self) -> TaskProblem:
        """The problem that was asked."""

    @property
    def format(self) -> int:
        """1 when it keeps the kit's format, else 0."""

    @property
    def right(self) -> int:
        """1 when the answer is right, else 0."""

    @property
    def reason(self) -> str:
        """`correct`, or what is wrong."""

    def record(self) -> dict[str, Any]:
        """Return what a file of completions holds of it; `Task.record` adds the task's name."""


P = TypeVar("P", bound=TaskProblem)


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer worked out for a reader: what the samples page shows of it."""

    answer: str | None  # the text of the last answer block; None when there is none
    steps: list[str]
    result: tuple[str, bool] | None  # one sentence, and whether it is as it should be; None: the verdict's reason
    chips: list[tuple[str, bool | None]]
    """Short remarks, each right, wrong or neither."""


class Solver(Protocol):
    """A search without a model, to compare one with: it draws from results until it has the right one."""

    def weights(self, problem: Any) -> Mapping[int, float] | None:
        """Return each result that it may get, and its relative chance to be the next among those that are left.

        None for a problem with too many results to count.
        """

    def target(self, problem: Any) -> int:
        """Return the right result."""

    def results(self, verdict: Any) -> list[int | None]:
        """Return the results of a completion's tries in the same terms; None for a try without one."""

    def strata(self, problem: Any) -> dict[str, str]:
        """Return the groups that the comparison is reported by, as `Task.strata` does."""


@dataclass(frozen=True, slots=True)
class CardText:
    """What a model card says of the task. The first three continue a sentence."""

    game: str  # "It was trained with GRPO on …"
    rewards: str  # of the default rewards: "Rules rewarded …"
    change: str  # "Use this exact prompt, with …"
    limits: list[str]


class Task(ABC, Generic[P]):
    """One task. A method that has a body here is one that a task need not have."""

    name: ClassVar[str]
    """In recipes and rows of completions."""
    title: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    """Columns of a row of data, each with its name for people."""
    fields: ClassVar[Columns]
    """Where `parse` finds them in a row of data."""
    success: ClassVar[str]
    """The reward that a right answer gets."""
    rewards: ClassVar[Mapping[str, Any]]
    """The rewards that a recipe can name."""
    prompts: ClassVar[Mapping[str, Prompt]]
    """The task's own prompts by style; the first is the default."""
    placeholders: ClassVar[Sequence[str]]
    """Columns that every prompt of a user must have."""
    example: ClassVar[Any]
    """A problem, for a model card."""
    arrow: ClassVar[str] = r"->|=>|→"
    """Expression of what a person types between the columns."""
    typed_example: ClassVar[str]
    """A problem as a person types it: a text for each column, with an arrow between them."""

    def default_rewards(self) -> dict[str, float]:
        """Return the weights of a recipe that names none: the original's sum of two verdicts."""
        return {"format": 1.0, self.success: 1.0}

    # --- data ---

    @abstractmethod
    def parse(self, row: object, place: str) -> P:
        """Return the problem of one row; a DataError that names `place` if it is none."""

    @abstractmethod
    def row(self, problem: P) -> dict[str, Any]:
        """Return the columns of a problem, in their order, as JSON has them; `parse` reads them."""

    def file_row(self, problem: P) -> dict[str, Any]:
        """Return the row that `data generate` writes."""
        return self.row(problem)

    def parser(self) -> Callable[[object, str], P]:
        """Return `parse`, or one that also compares the rows of a file."""
        return self.parse

    @abstractmethod
    def generate(self, rows: int, seed: int, settings: Mapping[str, Any] | None) -> Iterator[P]:
        """Yield problems without a file; `settings` are the recipe's `generator`. A DataError if it can't."""

    @abstractmethod
    def generator(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the distribution that `generate` draws from, for run.json."""

    def split_key(self, problem: P, by: str) -> Hashable:
        """Return what training and held-out part don't share; `by` is the recipe's `split_by`."""
        return problem.key

    def solvable(self, problem: P) -> bool | None:
        """Return whether there is an answer; None when the search takes too long."""
        return True

    @abstractmethod
    def inspect(self, problems: Sequence[P], progress: Progress) -> dict[str, object]:
        """Describe a set of problems, at least one."""

    # --- prompt and verdict ---

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles of the task's prompts."""
        return tuple(self.prompts)

    def prompt(self, style: str) -> Prompt:
        """Return the prompt of a style: one that the task has, or a file; see `read_prompt` for its errors."""
        return self.prompts[style] if style in self.prompts else read_prompt(Path(style), self.placeholders)

    def placeholder_values(self, problem: P) -> dict[str, Any]:
        """Return what a prompt shows of a problem, by placeholder; nothing else, such as an answer."""
        row = self.row(problem)
        return {name: row[name] for name in self.placeholders}

    def messages(self, problem: P, style: str) -> list[dict[str, str]]:
        """Return the chat of a problem: system, user, and the assistant's turn that a completion continues."""
        return self.prompt(style).messages(self.placeholder_values(problem))

    @abstractmethod
    def judge(self, completion: str, problem: P, names: Iterable[str] = (), prefill: str = THINK) -> TaskVerdict:
        """Return the verdict on the model's text after the prefill; `names` are rewards to compute besides.

        No text raises, and the work is linear in its length.
        """

    @abstractmethod
    def classify_failure(self, reason: str, *, truncated: bool) -> str:
        """Return the kind of a wrong answer, from its verdict's reason and whether it was cut at the longest length."""

    def record(self, verdict: TaskVerdict) -> dict[str, Any]:
        """Return the row of a file of completions."""
        return {"task": self.name, **verdict.record()}

    def score_row(self, row: Any, place: str) -> dict[str, float | str]:
        """Judge a row that has a `completion`; return its rewards and "reason". A DataError for another row."""
        problem = self.parse(row, place)
        if not isinstance(row.get("completion"), str):
            raise DataError(f"{place}: 'completion' {'must be a string' if 'completion' in row else 'is missing'}")
        verdict = self.judge(row["completion"], problem, prefill=prefill_of(row))
        return {**verdict.rewards, "reason": verdict.reason}

    # --- figures ---

    @abstractmethod
    def strata(self, problem: P) -> dict[str, str]:
        """Return the groups that success is reported by: `by_NAME` of an evaluation, and the problem's key in it."""

    def describe_stratum(self, name: str, key: str) -> str:
        """Return a group for people."""
        return key

    def metrics(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Return the task's own means over rows of completions.jsonl, at least one."""
        return {}

    def answer_figures(self, verdicts: Sequence[Any]) -> dict[str, float]:
        """Return the task's own means over sampled answers of an evaluation, at least one."""
        return {}

    def solvers(self, settings: Mapping[str, Any] | None) -> Mapping[str, Solver]:
        """Return searches to compare a model with, by name; `settings` are the recipe's `generator`."""
        return {}

    def solver_settings(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what the solvers depend on, for an evaluation's file."""
        return {}

    # --- for people ---

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return a problem in one line, from a row that has its columns."""
        return " -> ".join(str(row[column]) for column in self.columns)

    def heading(self, problem: P) -> str:
        """Return a problem for the samples page."""
        return self.describe(self.row(problem))

    @abstractmethod
    def explain(self, completion: str, problem: P, prefill: str = THINK) -> Explanation:
        """Work an answer out for a reader."""

    @abstractmethod
    def card(self, generator: Mapping[str, Any] | None, *, measured: bool) -> CardText:
        """Return what a model card says; `generator` is the problems' distribution if it is known.

        `measured` is whether the card has success by strata.
        """

    @abstractmethod
    def read_typed(self, *texts: str) -> P:
        """Return the problem of what a person typed for each column; a KitError describes what is wrong with it."""

    @abstractmethod
    def solution(self, problem: P) -> tuple[dict[str, Any], str]:
        """Return the answer for --json, and a line for people."""

    # --- warm start of a built-in model ---

    def fixed_texts(self) -> tuple[list[str], list[str]]:
        """Return the fixed parts of prompts, and of demonstrations, each of which becomes one token."""
        raise NotImplementedError(f"the task {self.name} has no built-in model")

    def traces(self, problems: Sequence[P], solver: Any, count: int, seed: int) -> Iterator[tuple[P, str]]:
        """Yield pairs of a problem and a completion to imitate, written by `solver`; deterministic for a seed."""
        raise NotImplementedError(f"the task {self.name} has no built-in model")

    def step_verdicts(self, text: str) -> list[bool]:
        """Return for each step of a demonstration in a completion whether it is right."""
        return []
