"""A user's own prompt: its file and the errors of one, its messages, and the format rule after any prefill."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_r1.tasks.answer_tags import find_thought
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.prompt import PREFILL
from mini_r1.tasks.countdown.rewards import VERDICTS, judge
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.registry import find_task

TASK, PROBLEM = find_task("countdown"), Problem((3, 5, 9), 1)
CHINESE = """\
system: 你是一个善于计算的助手。
user: |
  用 {nums} 得到 {target}，每个数字只用一次，例如 {1 + 2}。
  在 <think> </think> 中思考，在 <answer> </answer> 中回答。
prefill: |
  让我一步一步来。
  <think>
"""
WHOLE = "<think>3 + 5 = 8, 9 - 8 = 1</think>\n<answer>9 - (3 + 5)</answer>"
"""A right text of a whole assistant's turn."""
TURNS = (
    WHOLE, "<think>so</think>\n<answer>3 + 5</answer>", "<think>no end <answer>9 - (3 + 5)</answer>",
    "<think></think> <answer>9 - (3 + 5)</answer>", "<think>a</think>\n<answer>9 - (3 + 5)</answer> and more",
    "<think>a<think>b</think>\n<answer>9 - (3 + 5)</answer>",
)  # fmt: skip


def write(folder: Path, text: str) -> str:
    (folder / "prompt.yaml").write_text(text)
    return str(folder / "prompt.yaml")


def test_a_file_gives_system_user_and_prefill(tmp_path: Path) -> None:
    style = write(tmp_path, CHINESE)
    assert TASK.messages(PROBLEM, style) == [
        {"role": "system", "content": "你是一个善于计算的助手。"},
        {
            "role": "user",
            "content": "用 [3, 5, 9] 得到 1，每个数字只用一次，例如 {1 + 2}。\n"
            "在 <think> </think> 中思考，在 <answer> </answer> 中回答。",
        },
        {"role": "assistant", "content": "让我一步一步来。\n<think>"},
    ]
    assert TASK.prompt(style).names_thought
    alone = TASK.prompt(write(tmp_path, "user: '{target} {nums} {answer} {{nums}}'"))
    assert alone.messages(TASK.placeholder_values(PROBLEM)) == [
        {"role": "user", "content": "1 [3, 5, 9] {answer} {[3, 5, 9]}"}
    ]
    assert not alone.names_thought


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("user: Use {nums}.", "the user message has no {target}, so the model would not know it: write {nums} and "
         "{target} where they belong (found: nums)"),
        ("user: 'Use {numbers} for {goal}.'", "has no {nums}, .*found: numbers, goal"),
        ("system: '{nums} {target}'", "the user message has no {nums}, .*found: none"),
        ("user: '{nums} {target}'\nassistant: x", "unknown key 'assistant'; a prompt has system, user, prefill"),
        ("user: [a]", "user must be text (put it in quotes), found a list"),
        ("user: 3", "user must be text (put it in quotes), found 3"),
        ("Use {nums} for {target}", "must be a mapping with the keys system, user, prefill, found 'Use"),
        ("", "must be a mapping with the keys"),
        ("user: '", "not valid YAML (while scanning a quoted scalar"),
        ("user: !!python/object:os.system x", "not valid YAML (could not determine a constructor"),
        ("user: " + "x" * 70_000, "is larger than 64 KiB"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_an_error_with_what_to_do(tmp_path: Path, text: str, sentence: str) -> None:
    name = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        TASK.prompt(name)
    assert all(part in caught.value.message for part in sentence.split(".*")), caught.value.message
    assert caught.value.message.startswith(name)
    assert caught.value.exit_code == 78


def test_a_file_that_is_not_there_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.yaml is not a file"):
        TASK.prompt(str(tmp_path / "none.yaml"))
    (tmp_path / "latin.yaml").write_bytes("user: é".encode("latin-1"))
    with pytest.raises(DataError, match="not valid UTF-8"):
        TASK.prompt(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("turn", TURNS)
def test_the_verdict_is_that_of_prefill_and_completion_together(turn: str) -> None:
    """Wherever the prompt ends and the completion begins; no prefill ends within a tag that the model then closes."""
    expected = {name: judge(turn.removeprefix("<think>"), PROBLEM).rewards[name] for name in VERDICTS}
    for at in [0, *range(len("<think>"), turn.find("</think>") + 1), turn.find("</think>") + len("</think>")]:
        verdict = judge(turn[at:], PROBLEM, prefill=turn[:at])
        assert verdict.rewards == expected, turn[:at]
        assert judge(turn[at:], PROBLEM, prefill="So:\n" * bool(at) + turn[:at]).rewards == expected
    assert expected["format"] == (turn in TURNS[:2])


@pytest.mark.parametrize(
    ("completion", "prefill", "format_error", "reason"),
    [
        (WHOLE, "", None, "correct"),
        (f"\n{WHOLE}", "Well.", None, "correct"),
        (f"Sure. {WHOLE}", "", "the text does not begin with <think>", "correct, but the format is broken"),
        ("9 - 8 = 1 <answer>9 - (3 + 5)</answer>", "", "the text does not begin with <think>", "correct, but"),
        (
            "9 - 8 = 1 <answer>9 - 3</answer>",
            "Let me see:",
            "the text does not begin with <think>",
            "number 5 not used",
        ),
        ("9 - 8 = 1", "", "the text does not begin with <think>", "no answer block"),
        ("9 <answer>", "", "the text does not begin with <think>", "the answer block is not closed"),
        ("a</think>\n<answer>9 - (3 + 5)</answer>", "", "the text does not begin with <think>", "correct, but"),
        ("\n<answer>9 - (3 + 5)</answer>", "<think>\n</think>", None, "correct"),
        ("<answer>9 - (3 + 5)</answer>", PREFILL, "no </think>", "no </think>"),
    ],
)
def test_a_prompt_without_an_open_thought(completion: str, prefill: str, format_error: str | None, reason: str) -> None:
    verdict = judge(completion, PROBLEM, prefill=prefill)
    assert verdict.completion.format_error == format_error
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("completion", "prefill", "thought", "ends"),
    [
        ("a </think> b", PREFILL, "a ", True),
        ("a <answer>", PREFILL, "a <answer>", False),
        ("<think>a</think> b", "", "a", True),
        ("<think>a <answer>", "", "a <answer>", False),
        ("a <answer>1</answer>", "", "a ", True),
        ("a </think> <answer>", "", "a ", True),
        ("a", "", "a", False),
    ],
)
def test_the_thought_is_what_comes_before_the_answer(completion: str, prefill: str, thought: str, ends: bool) -> None:
    assert find_thought(completion, prefill) == (thought, ends)
