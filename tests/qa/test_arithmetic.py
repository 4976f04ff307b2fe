"""Generated arithmetic: the questions, their written solutions, and what the demonstrator gets right."""

from __future__ import annotations

import pytest
from mini_r1.recipe.builtin_models import ARITHMETIC_MODEL, BUILTIN_MODELS
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.qa.arithmetic import (
    ColumnDemonstrator,
    column_verdicts,
    generate_questions,
    operands,
    question_traces,
    written_columns,
)
from mini_r1.tasks.qa.question import Question
from mini_r1.tasks.registry import find_task
from mini_r1.training.from_scratch import build_tokenizer

TASK = find_task("qa")
PROBLEMS = list(generate_questions(600, 4))
KIND = BUILTIN_MODELS[ARITHMETIC_MODEL]


def test_questions_have_their_answers_and_all_strata() -> None:
    assert len({problem.key for problem in PROBLEMS}) == 600
    for problem in PROBLEMS:
        asked = operands(problem.question)
        assert asked is not None
        left, sign, right = asked
        assert int(problem.answer) == {"+": left + right, "-": left - right, "*": left * right}[sign]
        assert len(problem.answer) >= len(str(left))
    found = TASK.inspect(PROBLEMS, lambda rows: None)
    assert list(found["by_digits"]) == ["2", "3"]  # type: ignore[call-overload]
    assert sorted(found["by_operators"]) == ["*", "+", "-"]  # type: ignore[call-overload]
    assert min(*found["by_digits"].values(), *found["by_operators"].values()) > 130  # type: ignore[attr-defined]


def test_too_many_questions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_r1.tasks.qa.arithmetic.DIGITS", (1,))
    with pytest.raises(DataError, match="there are only about [0-9]+ generated questions"):
        list(generate_questions(1000, 1))


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        ((347, "+", 285), "7 + 5 + 0 = 12\n4 + 8 + 1 = 13\n3 + 2 + 1 = 06\n"),
        ((502, "-", 178), "12 - 8 - 0 = 04\n10 - 7 - 1 = 02\n05 - 1 - 1 = 03\n"),
        ((347, "*", 6), "7 * 6 + 0 = 42\n4 * 6 + 4 = 28\n3 * 6 + 2 = 20\n"),
        ((99, "+", 99), "9 + 9 + 0 = 18\n9 + 9 + 1 = 19\n"),
    ],
)
def test_written_columns(asked: tuple[int, str, int], lines: str) -> None:
    assert "".join(line for line, _ in written_columns(*asked)) == lines


def test_a_patient_demonstrator_is_always_right() -> None:
    for problem, text in question_traces(PROBLEMS, ColumnDemonstrator(0.0, 0.0), 400, 1):
        verdict = TASK.judge(text, problem)
        assert (verdict.right, verdict.format) == (1, 1), (problem, text)
        assert column_verdicts(text)
        assert all(column_verdicts(text))


def test_the_demonstrator_gives_up_and_calculates_right() -> None:
    pairs = list(question_traces(PROBLEMS, KIND.demonstrator, 1500, 2))
    assert pairs == list(question_traces(PROBLEMS, KIND.demonstrator, 1500, 2))
    right = sum(TASK.judge(text, problem).right for problem, text in pairs) / len(pairs)
    assert 0.1 < right < 0.4
    assert all(verdict for _, text in pairs for verdict in column_verdicts(text))


def test_a_wrong_column_is_found() -> None:
    assert column_verdicts("7 + 5 + 0 = 11\n7 * 6 + 4 = 46\n12 - 8 - 1 = 03\nand so on\n</think>\n1 + 1 + 0 = 3") == [
        False, True, True,
    ]  # fmt: skip


def test_a_question_that_was_not_generated_has_no_demonstration() -> None:
    with pytest.raises(DataError, match="is not a generated question"):
        list(question_traces([Question("Who?", "me")], KIND.demonstrator, 1, 1))


def test_the_model_reads_its_prompts_and_demonstrations() -> None:
    tokenizer = build_tokenizer(KIND)
    assert len(tokenizer) == KIND.vocabulary
    for problem, text in question_traces(PROBLEMS, KIND.demonstrator, 50, 3):
        for part in (text, TASK.messages(problem, "script")[1]["content"]):
            ids = tokenizer(part, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == part
            assert len(ids) < 60
