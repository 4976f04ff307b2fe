"""The interface of a task: every task keeps it, and nothing else knows what a row of one holds."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import read_jsonl, write_jsonl
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.registry import TASKS, AnyTask, find_task, is_right, score_line, task_of_row
from mini_r1.tasks.task_data import load_data
from pydantic import ValidationError

PACKAGE = Path(__file__).resolve().parent.parent / "app" / "mini_r1"
EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def keys_of_rows(source: str) -> set[str]:
    """Constants of a module that name a column of Countdown."""
    return {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in ("nums", "target")
    }


def test_only_countdown_knows_its_columns() -> None:
    for file in PACKAGE.rglob("*.py"):
        if "countdown" not in file.parts:
            assert not keys_of_rows(file.read_text()), file
    for file in (PACKAGE / "report").glob("*.js"):
        assert not re.search(r"\bnums\b", file.read_text()), file
    assert keys_of_rows("a = row['nums'], {'target': 1}, row.get('target')") == {"nums", "target"}


@EVERY
def test_a_row_is_read_back(task: AnyTask) -> None:
    problem = task.example
    row = json.loads(json.dumps(task.row(problem)))
    assert list(row) == list(task.columns)
    assert task.parse(row, "row") == task.parser()(task.file_row(problem), "row") == problem
    assert task.heading(problem) == task.heading(task.parse(row, "row"))
    assert str(row[list(row)[-1]]) in task.describe(row)


@EVERY
def test_generated_problems_are_distinct_solvable_and_the_same_for_a_seed(task: AnyTask) -> None:
    problems = list(task.generate(60, 1, None))
    assert problems == list(task.generate(60, 1, None)) != list(task.generate(60, 2, None))
    assert len(set(problems)) == 60
    assert all(task.solvable(problem) for problem in problems)
    assert task.inspect(problems, lambda rows: None)["rows"] == 60
    for problem in problems:
        for name, key in task.strata(problem).items():
            assert task.describe_stratum(name, key)
        data, line = task.solution(problem)
        assert data["solution"] is not None
        assert line


@EVERY
def test_a_split_leaks_nothing(task: AnyTask) -> None:
    data = load_data(
        task, "generated", revision=None, rows=80, seed=3, test_fraction=0.25, split_by="key", generator=None
    )
    assert not {problem.key for problem in data.train} & {problem.key for problem in data.held_out}
    assert data.held_out
    assert data.provenance["generator"] == task.generator(None)


@EVERY
def test_a_verdict_has_a_record_that_names_the_task_and_scores_the_same(task: AnyTask) -> None:
    right = task.judge(
        task.solution(task.example)[0]["solution"].join(("</think>\n<answer>", "</answer>")), task.example
    )
    wrong = task.judge("</think>\n<answer>1</answer>", task.example, task.rewards)
    assert (right.right, right.format, right.reason) == (1, 1, "correct")
    assert not wrong.right
    assert set(wrong.rewards) == set(task.rewards)
    for verdict in (right, wrong):
        row = task.record(verdict)
        assert row["task"] == task.name
        assert task_of_row(row) is task
        assert is_right(row) is bool(verdict.right)
        assert task.parse(row, "row") == task.example
        assert score_line(json.dumps(row).encode(), "row")["reason"] == row["reason"]
        assert task.explain(row["completion"], task.example).answer is not None
    figures = task.metrics([task.record(right), task.record(wrong)])
    assert all(0 <= value <= 100 for value in figures.values())
    task.answer_figures([right, wrong])


@EVERY
@pytest.mark.parametrize(
    "text", ["", "no end", "</think>\nno answer", "</think>\n<answer>9", "</think>\n<answer>\ud800</answer>"]
)
def test_every_wrong_answer_has_a_kind(task: AnyTask, text: str) -> None:
    verdict = task.judge(text, task.example)
    assert not verdict.right
    assert task.classify_failure(verdict.reason, truncated=False)
    json.dumps(task.record(verdict))
    task.explain(text, task.example)


@EVERY
def test_the_prompt_ends_in_the_assistants_turn(task: AnyTask) -> None:
    for style in task.styles:
        chat = task.messages(task.example, style)
        assert [turn["role"] for turn in chat] == ["system", "user", "assistant"]
        assert chat[-1]["content"].endswith("<think>")


@EVERY
def test_what_a_person_types_is_a_problem(task: AnyTask) -> None:
    first, second = re.split(task.arrow, task.typed_example)
    assert task.read_typed(first, second).key
    with pytest.raises(KitError):
        task.read_typed("", "")


@EVERY
def test_a_task_of_a_recipe(task: AnyTask) -> None:
    recipe = Recipe(model_name_or_path="a/b", task=task.name, dataset_id_or_path="a/b")
    assert recipe.resolved_rewards() == {"format": 1.0, task.success: 1.0}
    assert set(recipe.resolved_rewards()) <= set(task.rewards)


def test_a_task_that_is_misspelt_is_named() -> None:
    with pytest.raises(ValidationError, match="there is no task 'coutdown': did you mean 'countdown'"):
        Recipe(model_name_or_path="a/b", task="coutdown")
    with pytest.raises(KitError, match="there is no task 'chess': there are: countdown, qa"):
        find_task("chess")
    line = {"task": "qq", "question": "1?", "answer": "1", "completion": ""}
    with pytest.raises(DataError, match="f:3: there is no task 'qq': did you mean 'qa'"):
        score_line(json.dumps(line).encode(), "f:3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": {"equation": 1}}, "the task qa has no reward 'equation': choose from format, answer, random"),
        ({"prompt_style": "notebook"}, "the task qa has the prompt styles script"),
        ({"model_name_or_path": "builtin:demo"}, "made for the task countdown: name builtin:arithmetic"),
        ({"split_by": "numbers"}, "is for task: countdown only"),
        ({"scoring": "original"}, "is for task: countdown only"),
    ],
)
def test_what_a_task_does_not_have_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe(**{"model_name_or_path": "a/b", "task": "qa", "dataset_id_or_path": "a/b", **settings})  # type: ignore[arg-type]


@EVERY
def test_a_test_split_that_is_the_training_split_is_refused(task: AnyTask, tmp_path: Path) -> None:
    rows = [task.row(problem) for problem in task.generate(5, 1, None)]
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(DataError, match="every problem of its split 'train' is in 'test', too"):
        load_data(
            task, str(tmp_path), revision=None, rows=None, seed=1, test_fraction=0.1, split_by="key", generator=None,
            test_split="test",
        )  # fmt: skip
    assert len(list(read_jsonl(tmp_path / "test.jsonl"))) == 5


@EVERY
def test_a_prompt_of_a_user_shows_what_is_asked_and_no_more(task: AnyTask, tmp_path: Path) -> None:
    file = tmp_path / "prompt.yaml"
    shown = " ".join(f"{{{name}}}" for name in task.placeholders)
    file.write_text(f"user: '{shown} {{answer}} <think>'\nprefill: 'Well:'")
    (chat,) = task.messages(task.example, str(file))[:-1]
    assert chat["content"].endswith(" {answer} <think>")
    answer = str(task.solution(task.example)[0]["solution"])
    verdict = task.judge(f"<think>so</think>\n<answer>{answer}</answer>", task.example, prefill="Well:")
    assert (verdict.right, verdict.format) == (1, 1)
    row = task.record(verdict)
    assert row["prefill"] == "Well:"
    assert score_line(json.dumps(row).encode(), "row")["format"] == 1
    assert task.judge(f"so</think>\n<answer>{answer}</answer>", task.example, prefill="Well:").format == 0


@EVERY
def test_the_fields_of_a_task_are_its_columns(task: AnyTask) -> None:
    assert task.fields.names == list(task.columns)
    row = {f"my_{name}": value for name, value in task.row(task.example).items()}
    mapped = task.fields.mapped({name: f"my_{name}" for name in task.columns})
    assert task.parse(mapped.pick(row, ""), "") == task.example
    assert set(task.placeholders) <= set(task.columns)
