"""The rewards of an answer to a question, and its verdict."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from mini_r1.tasks.answer_tags import THINK, check_format, find_thought, last_answer, own_prefill
from mini_r1.tasks.coin_flip import coin_flip
from mini_r1.tasks.reflections import count_reflections

from .final_answer import MAX_ANSWER, is_number, same_answer
from .question import Question


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """Everything that is known of one completion; the verdict of this task."""

    problem: Question
    completion: str
    prefill: str  # what the completion continues
    format_error: str | None  # see `answer_tags.check_format`
    answer_error: str | None  # None if the answer is right
    rewards: dict[str, float]

    @property
    def format(self) -> int:
        """1 when it keeps the kit's format, else 0."""
        return int(self.format_error is None)

    @property
    def right(self) -> int:
        """1 when its answer is the question's, else 0."""
        return int(self.answer_error is None)

    @property
    def reason(self) -> str:
        """`correct`, or what is wrong; a wrong answer comes before a broken format."""
        correct = "correct" if self.format else f"correct, but the format is broken: {self.format_error}"
        return self.answer_error or correct

    def record(self) -> dict[str, Any]:
        """Return what a file of completions holds of one."""
        return {
            "question": self.problem.question,
            "answer": self.problem.answer,
            **own_prefill(self.prefill),
            "completion": self.completion,
            "rewards": dict(self.rewards),
            "reason": self.reason,
            "reflections": count_reflections(find_thought(self.completion, self.prefill)[0]),
        }


RewardFunction = Callable[[JudgedAnswer], float]
ANSWER_REWARDS: Final[dict[str, RewardFunction]] = {
    "format": lambda judged: judged.format,
    "answer": lambda judged: judged.right,
    "random": lambda judged: coin_flip(f"{judged.problem.key}|{judged.completion}"),
}
"""The rewards that a recipe can name; `random` is the random-reward control."""
ALWAYS = ("format", "answer")


def judge_answer(completion: str, problem: Question, names: Iterable[str] = (), prefill: str = THINK) -> JudgedAnswer:
    """Return the verdict on the model's text after the prefill; `names` are rewards besides ALWAYS."""
    _, format_error = check_format(completion, prefill)
    answer, answer_error = last_answer(completion, prefill)
    if answer is not None:
        answer_error = check_final_answer(answer.strip(), problem.answer)
    judged = JudgedAnswer(problem, completion, prefill, format_error, answer_error, {})
    judged.rewards.update({name: ANSWER_REWARDS[name](judged) for name in dict.fromkeys((*ALWAYS, *names))})
    return judged


def check_final_answer(answer: str, wanted: str) -> str | None:
    """Return what is wrong with a final answer; None if it is right."""
    if not answer:
        return "the answer is empty"
    if len(answer) > MAX_ANSWER:
        return f"the answer is longer than {MAX_ANSWER} characters"
    if same_answer(answer, wanted):
        return None
    if is_number(wanted) and not is_number(answer):
        return f"the answer is no number: {answer!a}, not {wanted!a}"
    return f"the answer is {answer!a}, not {wanted!a}"
