"""The seam that training and evaluation use, the prompt, and the lines of `mini-r1 score`."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_r1.tasks import task_data
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.generator import GeneratorSpec, generate
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.prompt import PREFILL, SYSTEM_MESSAGE
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import data_files
from mini_r1.tasks.registry import score_line
from mini_r1.tasks.task_data import TaskData, load_data

ROWS = Path(__file__).parents[1] / "assets" / "countdown_rows.jsonl"
PROBLEM = Problem((44, 19, 35), 98)
GOOD = "so</think>\n<answer>44 + 19 + 35</answer>"


def test_the_prompt_word_for_word() -> None:
    system, user, assistant = CountdownTask().messages(PROBLEM, "script")
    assert system == {
        "role": "system",
        "content": "You are a helpful assistant. You first thinks about the reasoning process in the mind and then "
        "provides the user with the answer.",
    }
    assert user == {
        "role": "user",
        "content": "Using the numbers [44, 19, 35], create an equation that equals 98. You can use basic arithmetic "
        "operations (+, -, *, /) one or multiple times but each number can only be used once. Show your work in "
        "<think> </think> tags. And return the final equation in <answer> </answer> tags, for example <answer> "
        "(1 + 2) / 3 </answer>. Think step by step inside <think> tags.",
    }
    assert assistant == {"role": "assistant", "content": "Let me solve this step by step.\n<think>"}
    assert CountdownTask().messages(PROBLEM, "notebook")[1]["content"] == (
        "Using the numbers [44, 19, 35], create an equation that equals 98. You can use basic arithmetic operations "
        "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the "
        "final equation and answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 = 1 </answer>."
    )
    assert CountdownTask().messages(PROBLEM, "notebook")[0]["content"] == SYSTEM_MESSAGE
    assert CountdownTask().messages(PROBLEM, "notebook")[2]["content"] == PREFILL


def test_a_verdict_has_the_rewards_that_are_asked_for() -> None:
    verdict = judge(GOOD, PROBLEM, ["length", "equation"])
    assert verdict.reason == "correct"
    assert verdict.rewards == {"format": 1, "equation": 1, "format_original": 1, "equation_original": 1, "length": 1.0}


def test_strata() -> None:
    assert CountdownTask().strata(PROBLEM) == {"size": "3", "operators": "add_subtract_suffice"}
    needs = CountdownTask().strata(Problem((3, 5), 15))
    assert needs == {"size": "2", "operators": "needs_multiply_or_divide"}
    needs["size"] = "changed"
    assert CountdownTask().strata(Problem((3, 5), 15))["size"] == "2"


def load(source: str, **changes: object) -> TaskData:
    options = {"revision": None, "rows": None, "seed": 42, "test_fraction": 0.25, "split_by": "key", "generator": None}
    return load_data(CountdownTask(), source, **{**options, **changes})  # type: ignore[arg-type]


def test_a_local_file() -> None:
    loaded = load(str(ROWS))
    assert (len(loaded.train), len(loaded.held_out)) == (18, 6)
    assert loaded == load(str(ROWS))
    assert loaded.held_out != load(str(ROWS), seed=43).held_out
    assert loaded.provenance == {
        "source": str(ROWS),
        "kind": "file",
        "config": None,
        "split": None,
        "test_split": None,
        "revision": None,
        "sha256": sha256(ROWS.read_bytes()).hexdigest(),
        "rows": 24,
        "seed": 42,
        "test_fraction": 0.25,
        "split_by": "key",
        "generator": None,
        "train_rows": 18,
        "held_out_rows": 6,
    }
    assert json.loads(json.dumps(loaded.provenance)) == loaded.provenance
    fewer = load(str(ROWS), rows=8)
    assert len(fewer.train) + len(fewer.held_out) == fewer.provenance["rows"] == 8
    assert load(str(ROWS), rows=1000).provenance["rows"] == 24


def test_generated_problems() -> None:
    settings = {"sizes": (2,), "high": 20}
    loaded = load("generated", rows=40, generator=settings)
    assert sorted(loaded.train + loaded.held_out, key=repr) == sorted(
        generate(40, 42, GeneratorSpec(**settings)), key=repr
    )
    assert loaded.provenance["kind"] == "generated"
    assert loaded.provenance["generator"]["high"] == 20  # type: ignore[index]
    json.dumps(loaded.provenance)


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "data").mkdir()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    monkeypatch.setattr(
        task_data,
        "fetch_hub",
        lambda name, revision, config, splits: (data_files(tmp_path, config, splits), f"commit of {name}@{revision}"),
    )
    loaded = load("owner/name", revision="main")
    assert loaded.provenance["revision"] == "commit of owner/name@main"
    assert loaded.provenance["kind"] == "hub"
    # The same rows, the same split, wherever they came from.
    assert loaded.train == load(str(ROWS)).train


@pytest.mark.parametrize("source", ["data/absent.jsonl", "absent.parquet", "./absent", "/absent/x", "a/b/c", ""])
def test_the_error_of_an_unknown_source_has_a_fix(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_data, "fetch_hub", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match="generated|Parquet|parquet"):
        load(source)


def test_score_line() -> None:
    line = json.dumps({"completion": GOOD, "nums": [44, 19, 35], "target": 98})
    verdict = {"format": 1, "equation": 1, "format_original": 1, "equation_original": 1, "reason": "correct"}
    assert score_line(line.encode()) == verdict
    assert list(score_line(line.encode())) == list(verdict)
    hostile = '{"completion": "\\ud800</think>\\n<answer>\\u0000</answer>", "nums": [1], "target": 1}'
    assert score_line(hostile.encode())["reason"] == r"unexpected character '\x00'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "f:3: not valid JSON"),
        ("{", "f:3: not valid JSON"),
        ("[" * 100_000, "f:3: not valid JSON"),
        ("[]", "f:3: expected an object"),
        ('{"nums": [1], "target": 1}', "f:3: 'completion' is missing"),
        ('{"nums": [1], "target": 1, "completion": 5}', "f:3: 'completion' must be a string"),
        ('{"nums": [1], "completion": "x"}', "f:3: there is no column 'target'; the columns are: nums, completion"),
        ('{"nums": [true], "target": 1, "completion": "x"}', "f:3: 'nums' must hold"),
    ],
)
def test_a_malformed_line_is_named(line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_line(line.encode(), "f:3")


@given(st.text())
def test_any_line_is_judged_or_refused(line: str) -> None:
    with pytest.raises(DataError):
        score_line(line.encode())
    row = json.dumps({"completion": line, "nums": [1, 2], "target": 3})
    assert json.loads(json.dumps(score_line(row.encode())))["equation"] in (0, 1)


def test_the_seam_imports_nothing_heavy() -> None:
    check = (
        "import sys, mini_r1.tasks.registry;"
        "heavy = ('torch', 'transformers', 'datasets', 'numpy', 'pyarrow', 'huggingface_hub', 'pydantic');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
