"""The demo's teacher is honest and impatient, and its tokenizer gives text back exactly."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.countdown import task
from mini_r1.countdown.expression import check_answer
from mini_r1.training.demo_model import build_tokenizer
from mini_r1.training.traces import Try, draw_tries, traces
from mini_r1.training.warm_start import step_verdicts

PROBLEMS = [task.Problem((8, 2, 3), 7), task.Problem((5, 5, 1), 30), task.Problem((9, 4, 10), 31)]


def test_every_step_is_calculated_right_and_every_remark_is_true() -> None:
    for problem, text in traces(PROBLEMS, max_value=50, count=500, seed=0):
        assert all(step_verdicts(text))
        for line in text.split("</think>")[0].splitlines():
            working, _, remark = line.partition(" (")
            if not remark:
                continue  # a broken format may put the answer here
            result = int(working.rsplit("= ", 1)[1])
            said = {"yes)": 0, "too low)": -1, "too high)": 1}[remark]
            assert said == (result > problem.target) - (result < problem.target)


def test_the_teacher_gives_up_early_and_is_right_only_part_of_the_time() -> None:
    pairs = list(traces(PROBLEMS, max_value=50, count=2000, seed=1))
    tries = sum(task.tries(text) for _, text in pairs) / len(pairs)
    right = sum(task.judge(text, problem).equation for problem, text in pairs) / len(pairs)
    good_format = sum(task.judge(text, problem).format for problem, text in pairs) / len(pairs)
    assert 1.2 < tries < 2.2
    assert 0.05 < right < 0.4
    assert good_format == pytest.approx(0.7, abs=0.04)


@given(st.permutations([3, 7, 2]), st.lists(st.sampled_from("+-*"), min_size=2, max_size=2))
def test_the_answer_is_the_working_as_one_expression(nums: list[int], ops: list[str]) -> None:
    attempt = Try(tuple(nums), tuple(ops))
    assert check_answer(attempt.answer(), nums, attempt.values()[-1]) is None
    assert attempt.working().endswith(f"= {attempt.values()[-1]}")


def test_tries_of_one_answer_differ_in_result_and_stay_in_range() -> None:
    results = [t.values() for t in draw_tries(PROBLEMS[0], 20, random.Random(0))]
    assert len({values[-1] for values in results}) == len(results) > 3
    assert all(0 <= value <= 20 for values in results for value in values)


def test_a_random_solver_gets_further_with_more_tries() -> None:
    few = task.random_success([(p, 1) for p in PROBLEMS * 200], 50, seed=0)
    many = task.random_success([(p, 4) for p in PROBLEMS * 200], 50, seed=0)
    assert 0 < few < many < 1
    assert task.random_success([(p, 0) for p in PROBLEMS], 50, seed=0) == 0
    assert task.random_success([(p, 1000) for p in PROBLEMS], 50, seed=0) == 1


def test_the_same_seed_gives_the_same_traces() -> None:
    assert list(traces(PROBLEMS, 50, 20, seed=3)) == list(traces(PROBLEMS, 50, 20, seed=3))
    assert list(traces(PROBLEMS, 50, 20, seed=3)) != list(traces(PROBLEMS, 50, 20, seed=4))


TOKENIZER = build_tokenizer()


@given(st.text(alphabet=string.printable))
def test_any_ascii_text_is_read_back_exactly(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("style", ["script", "notebook"])
def test_the_real_prompt_is_a_few_tokens(style: str) -> None:
    text = TOKENIZER.apply_chat_template(task.messages(PROBLEMS[0], style), tokenize=False, continue_final_message=True)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert len(ids) == 23
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.unk_token_id not in ids
