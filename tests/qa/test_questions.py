"""Questions and final answers: rows of any file, GSM8K's form, and when two answers are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_r1.tasks.answer_tags import fold_reason
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import data_files, read_files
from mini_r1.tasks.qa.answer_rewards import check_final_answer, judge_answer
from mini_r1.tasks.qa.final_answer import MAX_ANSWER, same_answer
from mini_r1.tasks.qa.question import COLUMNS, Question, parse_question, row_parser
from mini_r1.tasks.registry import find_task
from mini_r1.tasks.task_data import load_data

GSM8K = Path(__file__).parents[1] / "assets" / "gsm8k"
"""Made up in the form of the hub's set; no row is from it."""


def test_gsm8k_is_loaded_and_scored() -> None:
    """The final answer follows `####`; the test split is held out whole."""
    data = load_data(
        find_task("qa"), str(GSM8K), revision=None, rows=None, seed=1, test_fraction=0.1, split_by="key",
        generator=None, test_split="test",
    )  # fmt: skip
    assert sorted(problem.answer for problem in data.train) == ["-5", "1,375", "12", "20", "22", "34"]
    assert [problem.answer for problem in data.held_out] == ["106", "180"]
    growth = next(problem for problem in data.train if problem.answer == "1,375")
    for text, right in (("1375", 1), ("$1,375.00", 1), ("1375 people", 0), ("1,250", 0), ("#### 1375", 0)):
        assert judge_answer(f"It grows.</think>\n<answer> {text} </answer>", growth).right == right, text


def read(path: Path, *rows: object) -> list[Question]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_files(data_files(path)[0], COLUMNS, row_parser())


def test_an_answer_without_its_mark_is_refused(tmp_path: Path) -> None:
    path, marked = tmp_path / "rows.jsonl", {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}
    assert read(path, marked, marked) == [Question("1 + 1?", "2")] * 2
    with pytest.raises(
        DataError, match=r"rows.jsonl:2: 'answer' has no '####' before a final answer, as .*rows.jsonl:1"
    ):
        read(path, marked, {"question": "2 + 2?", "answer": "It is 4."})
    # The same file without any mark has plain final answers.
    assert read(path, {"question": "2 + 2?", "answer": "It is 4."}) == [Question("2 + 2?", "It is 4.")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected an object with 'question' and 'answer'"),
        ({"question": "1?"}, "there is no column 'answer'; the columns are: question"),
        ({"question": " ", "answer": "1"}, "'question' must be a text, not empty"),
        ({"question": "1?", "answer": None}, "'answer' must be a text"),
        ({"question": "1?", "answer": True}, "'answer' must be a text"),
        ({"question": "1?", "answer": "So: ####  "}, "nothing follows '####'"),
        ({"question": "1?", "answer": "first\nsecond"}, "write '####' between a worked solution and its final answer"),
        ({"question": "1?", "answer": "x" * (MAX_ANSWER + 1)}, "a final answer in one line of at most 100"),
        ({"question": "1" * 20_001, "answer": "1"}, "'question' has 20,001 characters"),
    ],
)
def test_a_bad_row_is_named(row: object, message: str) -> None:
    with pytest.raises(DataError, match=f"f:7: .*{message}"):
        parse_question(row, "f:7")


@pytest.mark.parametrize(("answer", "read"), [(7, "7"), (7.0, "7"), (0.25, "0.25"), (" Paris ", "Paris")])
def test_an_answer_may_be_a_number(answer: object, read: str) -> None:
    assert parse_question({"question": "?", "answer": answer, "level": 3}, "f").answer == read


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1,000", "1000", True),
        ("$1000.00", "1000", True),
        ("007", "7", True),
        ("−4", "-4", True),
        ("+4", "4", True),
        ("1/2", "0.5", True),
        ("50%", "50", True),
        ("18.", "18", True),
        ("New  York.", "new york", True),
        ("1/0", "1/0", True),
        ("4", "-4", False),
        ("1,00", "100", False),
        ("1e3", "1000", False),
        ("12", "1 2", False),
        ("Paris", "London", False),
        ("٣", "3", False),
    ],
)
def test_when_two_answers_are_the_same(left: str, right: str, same: bool) -> None:
    assert same_answer(left, right) is same
    assert same_answer(right, left) is same


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200), st.text(max_size=40))
def test_no_answer_raises(answer: str, wanted: str) -> None:
    reason = check_final_answer(answer, wanted)
    assert reason is None or reason.isascii()
    judge_answer(f"</think>\n<answer>{answer}</answer>", Question("?", wanted), ("random",)).record()


def test_reasons() -> None:
    problem, task = Question("?", "12"), find_task("qa")
    found = {
        text: judge_answer(f"</think>\n<answer>{text}</answer>", problem).reason for text in ("13", "no", "", "9" * 101)
    }
    assert found == {
        "13": "the answer is '13', not '12'",
        "no": "the answer is no number: 'no', not '12'",
        "": "the answer is empty",
        "9" * 101: "the answer is longer than 100 characters",
    }
    kinds = [task.classify_failure(reason, truncated=False) for reason in found.values()]
    assert kinds == ["another answer", "the answer is no number", "the answer is empty", found["9" * 101]]
    assert fold_reason(found["13"]) == "the answer is 'N', not 'N'"
    broken = judge_answer("</think> <answer>12</answer>", problem)
    assert (broken.right, broken.format) == (1, 0)
    assert broken.reason.startswith("correct, but the format is broken")


def test_the_random_reward_is_a_fair_coin() -> None:
    rewards = [judge_answer(f"{i}", Question("?", "1"), ("random",)).rewards["random"] for i in range(400)]
    assert 150 < sum(rewards) < 250
    assert rewards == [judge_answer(f"{i}", Question("?", "1"), ("random",)).rewards["random"] for i in range(400)]
