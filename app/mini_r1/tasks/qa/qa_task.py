"""Questions with exact answers behind the interface of a task."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mini_r1.tasks.answer_tags import THINK, classify_missing_answer, last_answer
from mini_r1.tasks.prompt_file import Prompt
from mini_r1.tasks.task import CardText, Explanation, Progress, Task

from .answer_rewards import ANSWER_REWARDS, JudgedAnswer, check_final_answer, judge_answer
from .arithmetic import (
    DIGITS,
    OPERATORS,
    WORKING,
    ColumnDemonstrator,
    column_verdicts,
    generate_questions,
    operands,
    question_traces,
)  # fmt: skip
from .question import COLUMNS, Question, parse_question, row_parser

SYSTEM = (
    "You are a helpful assistant. You first think about the reasoning process in the mind and then provide the user "
    "with the answer."
)
USER = (
    "{question} Show your work in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
    "example <answer> 42 </answer>. Think step by step inside <think> tags."
)
PREFILL = "Let me solve this step by step.\n<think>"

OTHER = "other questions"
"""The stratum of a question that was not generated here."""


class QaTask(Task[Question]):
    """Answer a question with its exact final answer."""

    name = "qa"
    title = "Questions and answers"
    columns: ClassVar = {"question": "question", "answer": "answer"}
    success = "answer"
    rewards = ANSWER_REWARDS
    prompts: ClassVar = {"script": Prompt(USER, SYSTEM, PREFILL)}  # the instructions of the original's script
    placeholders = ("question",)
    fields = COLUMNS
    example = Question("What is 347 + 285?", "632")
    typed_example = "What is 347 + 285? -> 632"

    def parse(self, row: object, place: str) -> Question:
        return parse_question(row, place)

    def parser(self) -> Callable[[object, str], Question]:
        return row_parser()

    def row(self, problem: Question) -> dict[str, Any]:
        return {"question": problem.question, "answer": problem.answer}

    def generate(self, rows: int, seed: int, settings: Mapping[str, Any] | None) -> Iterator[Question]:
        return generate_questions(rows, seed)

    def generator(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"digits": list(DIGITS), "operators": OPERATORS}

    def inspect(self, problems: Sequence[Question], progress: Progress) -> dict[str, object]:
        progress(len(problems))
        strata: dict[str, dict[str, int]] = {}
        for problem in problems:
            for name, key in self.strata(problem).items():
                counts = strata.setdefault(name, {})
                counts[key] = counts.get(key, 0) + 1
        return {
            "rows": len(problems),
            "exact_duplicates": len(problems) - len(set(problems)),
            "duplicate_questions": len(problems) - len({problem.key for problem in problems}),
            **{f"by_{name}": dict(sorted(counts.items())) for name, counts in strata.items()},
        }

    def judge(
        self, completion: str, problem: Question, names: Iterable[str] = (), prefill: str = THINK
    ) -> JudgedAnswer:
        return judge_answer(completion, problem, names, prefill)

    def classify_failure(self, reason: str, *, truncated: bool) -> str:
        if missing := classify_missing_answer(reason, truncated=truncated):
            return missing
        for beginning in ("the answer is empty", "the answer is longer", "the answer is no number"):
            if reason.startswith(beginning):
                return reason.partition(":")[0]
        return "another answer"

    def strata(self, problem: Question) -> dict[str, str]:
        asked = operands(problem.question)
        return {"digits": str(len(str(asked[0]))) if asked else OTHER, "operators": asked[1] if asked else OTHER}

    def describe_stratum(self, name: str, key: str) -> str:
        return f"{key} digits" if name == "digits" and key != OTHER else key

    def metrics(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        groups: dict[str, list[float]] = {}
        for record in records:
            if asked := operands(record["question"]):
                groups.setdefault(f"success/{len(str(asked[0]))}_digits", []).append(record["rewards"][self.success])
        return {name: sum(values) / len(values) for name, values in sorted(groups.items())}

    def explain(self, completion: str, problem: Question, prefill: str = THINK) -> Explanation:
        answer, _ = last_answer(completion, prefill)
        if answer is None:
            return Explanation(None, [], None, [])
        right = check_final_answer(answer.strip(), problem.answer) is None
        sentence = "this is the answer ✓" if right else f"the answer is {problem.answer} ✗"
        return Explanation(answer, [], (sentence, right), [])

    def card(self, generator: Mapping[str, Any] | None, *, measured: bool) -> CardText:
        return CardText(
            "questions with exact answers: it writes its reasoning, then the final answer",
            "a correct format and a correct answer, equally",
            "another question",
            [
                "It was trained on one kind of question. It may be worse at everything else than the model it was "
                "made from."
            ],
        )

    def read_typed(self, *texts: str) -> Question:
        question, answer = texts
        return parse_question({"question": question, "answer": answer}, "this question")

    def solution(self, problem: Question) -> tuple[dict[str, Any], str]:
        return {"solution": problem.answer}, f"exact answer: {problem.answer}"

    def fixed_texts(self) -> tuple[list[str], list[str]]:
        return [SYSTEM, PREFILL, *filter(None, USER.split("{question}")), "What is ", "?"], list(WORKING)

    def traces(
        self, problems: Sequence[Question], solver: ColumnDemonstrator, count: int, seed: int
    ) -> Iterator[tuple[Question, str]]:
        return question_traces(problems, solver, count, seed)

    def step_verdicts(self, text: str) -> list[bool]:
        return column_verdicts(text)
