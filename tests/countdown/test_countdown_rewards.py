"""The verdicts on a whole completion: the table of known answers, the format, the reasons, the optional rewards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mini_r1.tasks.answer_tags import fold_reason
from mini_r1.tasks.countdown.parsed_completion import ParsedCompletion
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import REWARDS, VERDICTS, judge, reward
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.registry import score_line

GOOD = "Let me add.</think>\n<answer>1 + 2</answer>"
FRAGMENTS = ["<think>", "</think>", "<answer>", "</answer>", "\n", "</think>\n<answer>", "1 + 2", "<", "\ud800", "\x00"]


def pay(name: str, completion: str, problem: Problem) -> float:
    return judge(completion, problem, [name]).rewards[name]


def test_a_good_completion() -> None:
    verdict = judge(GOOD, Problem((1, 2), 3))
    assert verdict.rewards == dict.fromkeys(VERDICTS, 1)
    assert (verdict.format, verdict.right, verdict.reason) == (1, 1, "correct")


def test_a_completion_is_recorded_with_its_tries_and_style() -> None:
    text = "8 + 2 = 10 (too low)\n8 - 2 = 6 (too low)\nWait, let me try again.</think>\n<answer>8 * 2</answer>"
    verdict = judge(text, Problem((8, 2), 16))
    assert verdict.record() == {
        "nums": [8, 2], "target": 16, "completion": text, "rewards": dict.fromkeys(VERDICTS, 1), "reason": "correct",
        "tries": 2, "reflections": 2, "style": "neither",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("thought", "answer", "results"),
    [
        ("8 + 2 = 10\n8 - 2 = 6", "8 * 2", [10, 6, 16]),
        ("8 + 2 = 10\n8 - 2 = 6", "2 + 8", [10, 6]),  # it answers with a try
        ("8 + 2 = 10\n8 - 2 = 6", None, [10, 6]),
        ("8 + 2 = 10", "8 +", [10]),
        ("so", "8 * 2", [16]),
        ("so", "8 +", [None]),
        ("so", None, [None]),
    ],
)
def test_the_results_are_those_of_the_tries_and_of_another_answer(
    thought: str, answer: str | None, results: list[int | None]
) -> None:
    text = thought if answer is None else f"{thought}</think>\n<answer>{answer}</answer>"
    assert judge(text, Problem((8, 2), 16)).results == results


def test_a_line_is_scored_and_one_without_a_completion_is_refused() -> None:
    row: dict[str, Any] = {"nums": [1, 2], "target": 3}
    scored = score_line(json.dumps({**row, "completion": GOOD}).encode())
    assert scored == {**dict.fromkeys(VERDICTS, 1), "reason": "correct"}
    for wrong, said in ((row, "f:2: 'completion' is missing"), ({**row, "completion": 5}, "f:2: .* must be a string")):
        with pytest.raises(DataError, match=said):
            score_line(json.dumps(wrong).encode(), "f:2")


@pytest.mark.parametrize(
    ("answer", "nums", "target", "kit", "original"),
    [
        ("(1 + 2) / 3 = 1", (1, 2, 3), 1, 1, 0),
        ("65 + 7//99", (65, 7, 99), 65, 0, 1),
        ("64 + 1**97", (64, 1, 97), 65, 0, 1),
        ("10 + 2**-97", (10, 2, 97), 10, 0, 1),
        ("6.5*10", (6, 5, 10), 65, 0, 1),
        ("1\n+ 2", (1, 2), 3, 1, 0),
        ("3 × 5", (3, 5), 15, 0, 0),
        ("8 − 5", (8, 5), 3, 0, 0),
        (r"3 \times 5", (3, 5), 15, 0, 0),
        ("3(5)", (3, 5), 15, 0, 0),
        ("03+5", (3, 5), 8, 0, 0),
        ("99**98**7", (99, 98, 7), 5, 0, 0),
        ("9**9**9", (9, 9, 9), 5, 0, 0),
        ("3 * 5", (3, 5), 15, 1, 1),
    ],
)
def test_the_table_of_known_answers(answer: str, nums: tuple[int, ...], target: int, kit: int, original: int) -> None:
    verdict = judge(f"so</think>\n<answer>{answer}</answer>", Problem(nums, target))
    assert (verdict.right, verdict.rewards["equation_original"]) == (kit, original)
    assert (verdict.format, verdict.rewards["format_original"]) == (1, 1)


def test_the_original_takes_the_first_answer_and_the_kit_the_last() -> None:
    first_right = "maybe <answer>1 + 2</answer> or</think>\n<answer>2 - 1</answer>"
    verdict = judge(first_right, Problem((1, 2), 3))
    assert (verdict.right, verdict.rewards["equation_original"]) == (0, 1)
    assert verdict.reason == "result is 1, not 3"
    last_right = "maybe <answer>2 - 1</answer> or</think>\n<answer>1 + 2</answer>"
    verdict = judge(last_right, Problem((1, 2), 3))
    assert (verdict.right, verdict.rewards["equation_original"]) == (1, 0)


@pytest.mark.parametrize(
    ("completion", "kit", "original", "why"),
    [
        (GOOD + "\n", 0, 1, "white space after </answer>"),
        (GOOD + "!", 0, 0, "text after </answer>"),
        (GOOD + "<answer>1 + 2</answer>", 0, 1, "more than one answer block"),
        (GOOD.replace("1 + 2", "1 + 2</answer><answer>1 + 2"), 0, 1, "more than one answer block"),
        (GOOD + "</answer>", 0, 1, "a stray </answer> after the answer block"),
        (GOOD + " </answer>\n", 0, 1, "a stray </answer> after the answer block"),
        (GOOD.replace("1 + 2", "<answer>1 + 2"), 0, 1, "a second <answer> in the answer block"),
        (GOOD + "<|im_end|>", 0, 0, "text after </answer>"),
        (GOOD + "<answer>", 0, 0, "a second <answer> that is not closed"),
        (GOOD + "\n<answer>1 + 2", 0, 0, "a second <answer> that is not closed"),
        ("<think>" + GOOD, 0, 0, "a second <think> in the thought"),
        ("a</think>" + GOOD, 0, 0, "</think> is not followed by one newline and <answer>"),
        (GOOD.replace("\n", ""), 0, 0, "</think> is not followed by one newline and <answer>"),
        (GOOD.replace("\n", "\n\n"), 0, 0, "</think> is not followed by one newline and <answer>"),
        (GOOD.replace("add", "<b> <answer>"), 1, 1, None),
    ],
)
def test_format(completion: str, kit: int, original: int, why: str | None) -> None:
    verdict = judge(completion, Problem((1, 2), 3))
    assert (verdict.format, verdict.rewards["format_original"], verdict.right) == (kit, original, 1)
    assert verdict.reason == ("correct" if why is None else f"correct, but the format is broken: {why}")


LAST_COUNTS = "an answer follows the first </think>, but the last </think> counts"


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "no </think>"),
        ("<answer>1 + 2</answer>", "no </think>"),
        ("<answer>1 + 2</answer></think>", "the answer is in the thought, none follows </think>"),
        ("<answer>1 + 2</answer>a</think>\n1 + 2", "the answer is in the thought, none follows </think>"),
        ("a</think>\n1 + 2", "no answer after </think>"),
        ("a</think>\n<answer>1 + 2", "the answer block is not closed"),
        ("<answer>1 + 2</answer></think>\n<answer>1 + 2", "the answer block is not closed"),
        ("a</think>\n<answer>1 + 2<answer>", "the answer block is not closed"),
        ("a</think>\n1 + 2</answer>", "</answer> without <answer>"),
        ("a</think>\n</answer>1 + 2<answer>", "the answer block is not closed"),
        (GOOD + "\n<think>check: 3</think>", LAST_COUNTS),
        (GOOD + "\n</think>", LAST_COUNTS),
        (GOOD + "\n<think>check</think>\nyes</think>", LAST_COUNTS),
        (GOOD + "\n<think>check</think>\n<answer>2 - 1</answer>", "result is 1, not 3"),
        (GOOD + "\n<think>check", "correct, but the format is broken: text after </answer>"),
        ("a</think>\n<answer></answer>", "answer is empty"),
        ("a</think>\n<answer>1 + 2 + 2</answer>", "number 2 used twice"),
    ],
)
def test_reasons_of_a_wrong_completion(completion: str, reason: str) -> None:
    verdict = judge(completion, Problem((1, 2), 3))
    assert verdict.right == reason.startswith("correct")
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("result is 7, not 24", "result is N, not N"),
        ("result is -5/2, not 30", "result is N, not N"),
        ("result is 123456789012345678901234.../7, not 24", "result is N, not N"),
        ("number 7 used 3 times, given twice", "number N used N times, given twice"),
        ("unexpected character 'L'", "unexpected character …"),
        ('unexpected character "\'"', "unexpected character …"),
        ("unexpected ')' where a number belongs", "unexpected … where a number belongs"),
        ("operator missing before '('", "operator missing before …"),
        ("no </think>", "no </think>"),
        ("correct", "correct"),
    ],
)
def test_like_reasons_count_as_one(reason: str, kind: str) -> None:
    assert fold_reason(reason) == kind


@pytest.mark.parametrize(
    "completion",
    [
        "a</think>\n<answer>9</answer> <answer>1 + 2</answer> <answer>9",
        "a</think>\n<answer>1 + 2</answer> </answer>",
        "a</think>\n<answer>9 <answer>1 + 2</answer>",
    ],
)
def test_the_last_complete_block_counts(completion: str) -> None:
    assert judge(completion, Problem((1, 2), 3)).right == 1


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join))
@example("\ud800</think>\n<answer>\udfff\x00</answer>")
def test_no_text_raises_and_the_verdicts_agree(completion: str) -> None:
    problem = Problem((1, 2), 3)
    verdict = judge(completion, problem, REWARDS)
    assert verdict.reason
    assert (verdict.reason == "correct") == (verdict.format == verdict.right == 1)
    # The kit's format is the original's with two more conditions.
    assert verdict.format <= verdict.rewards["format_original"]
    assert list(verdict.rewards) == list(REWARDS)
    assert all(0.0 <= value <= 1.0 for value in verdict.rewards.values())


def test_words() -> None:
    problem = Problem((1, 2), 3)
    assert pay("words", "word " * 10 + "</think>", problem) == 0.5
    assert pay("words", "word " * 90 + "</think>", problem) == 1.0
    assert pay("words", "word " * 90, problem) == 0.0


def test_length() -> None:
    problem = Problem((1, 2), 3)
    assert [pay("length", "x" * count, problem) for count in (0, 1000, 2500, 4000, 9000)] == [1, 1, 0.5, 0, 0]


def test_random_is_a_fair_and_fixed_coin() -> None:
    tosses = [pay("random", f"completion {i}", Problem((1, 2), 3)) for i in range(4000)]
    assert set(tosses) == {0.0, 1.0}
    assert tosses[:12] == [0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 0]  # with every version: it is an experiment's control
    assert abs(sum(tosses) / 4000 - 0.5) < 0.04
    assert tosses == [pay("random", f"completion {i}", Problem((1, 2), 3)) for i in range(4000)]
    assert tosses != [pay("random", f"completion {i}", Problem((1, 2), 4)) for i in range(4000)]


def test_adding_a_reward_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_r1.tasks.countdown.rewards.REWARDS", dict(REWARDS))

    @reward("loud")
    def loud(completion: ParsedCompletion) -> float:
        return float(completion.text.isupper())

    assert pay("loud", "YES", Problem((1,), 1)) == 1.0
    with pytest.raises(ValueError, match="already defined"):
        reward("loud")(loud)
