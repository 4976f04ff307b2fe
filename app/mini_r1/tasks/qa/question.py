"""One question with its final answer, and the check that makes one of a row from outside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mini_r1.tasks.columns import Columns, Field
from mini_r1.tasks.data_errors import DataError, refuse_missing
from mini_r1.values import describe_value

from .final_answer import MARK, MAX_ANSWER

COLUMNS = Columns((
    Field("question", ("problem", "prompt", "query", "input", "instruction"), lambda value: isinstance(value, str)),
    Field(
        "answer",
        ("final_answer", "solution", "output", "response"),
        lambda value: isinstance(value, str | int | float),
    ),
))  # fmt: skip
"""Columns of a row; others are ignored."""
MAX_QUESTION = 20_000
"""Most characters of a question: more tokens than any recipe's prompt."""


@dataclass(frozen=True, slots=True)
class Question:
    """Answer `question` with `answer`, exactly."""

    question: str
    answer: str  # the final one, without a worked solution

    @property
    def key(self) -> str:
        """The question, however it is spaced and capitalized."""
        return " ".join(self.question.split()).casefold()

    @property
    def cluster(self) -> str:
        """The same: each question is a separate draw."""
        return self.key


def parse_question(row: object, place: str) -> Question:
    """Check one row and return its question; other columns are ignored.

    The answer is a text or a number; of a text with `####`, as GSM8K has them, what follows the last one.

    Raises:
        DataError: naming `place` (`data.jsonl:17`) and what is wrong.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: expected an object with 'question' and 'answer', found {describe_value(row)}")
    refuse_missing(row, COLUMNS.names, place)
    question, answer = row["question"], row["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = f"{answer:.15g}" if isinstance(answer, float) else str(answer)
    for name, value in (("question", question), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: '{name}' must be a text, not empty, found {describe_value(row[name])}")
    if len(question) > MAX_QUESTION:
        raise DataError(f"{place}: 'question' has {len(question):,} characters, at most {MAX_QUESTION:,} are read")
    final = answer.rpartition(MARK)[2].strip()
    if not final:
        raise DataError(f"{place}: nothing follows '{MARK}' in 'answer': write the final answer behind it")
    if len(final) > MAX_ANSWER or "\n" in final:
        raise DataError(
            f"{place}: 'answer' must be a final answer in one line of at most {MAX_ANSWER} characters: write '{MARK}' "
            "between a worked solution and its final answer, as in GSM8K"
        )
    return Question(question.strip(), final)


def row_parser() -> Callable[[object, str], Question]:
    """Return `parse_question` for the rows of one data set: if the first has `####`, all must have it."""
    marked: list[str] = []

    def parse(row: object, place: str) -> Question:
        question = parse_question(row, place)
        here = isinstance(row, Mapping) and isinstance(row["answer"], str) and MARK in row["answer"]
        if not marked:
            marked.append(place if here else "")
        elif marked[0] and not here:
            raise DataError(
                f"{place}: 'answer' has no '{MARK}' before a final answer, as {marked[0]} has: write it there, or "
                "remove the row"
            )
        return question

    return parse
