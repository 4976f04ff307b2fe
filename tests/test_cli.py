"""The command line as a user calls it: help, results, and every kind of mistake."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer
from mini_r1.cli.app import app

from tests.conftest import ASSETS, rows
from tests.training.workers import run_forked

Kit = Callable[..., subprocess.CompletedProcess[str]]

RIGHT = {"completion": "it is 6 * 7</think>\n<answer>6 * 7</answer>", "nums": [6, 7], "target": 42}
WRONG = {"completion": "</think>\n<answer>7 * 7</answer>", "nums": [6, 7], "target": 42}


def jsonl(*objects: object) -> str:
    return "".join(json.dumps(o) + "\n" for o in objects)


# --- numbers ---


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "demo-cpu", "--gpus=-1"),
        ("plan", "demo-cpu", f"--gpus={10**9}"),
        ("plan", "demo-cpu", "--nodes=0"),
        ("plan", "demo-cpu", f"--nodes={10**9}"),
        ("plan", "demo-cpu", "--gpu-memory=0"),
        ("plan", "demo-cpu", "--gpu-memory=nan"),
        ("plan", "demo-cpu", "--grace=-1"),
        ("plan", "demo-cpu", "--grace=inf"),
        ("recipes", "--gpus=-1"),
        ("recipes", f"--gpus={10**9}"),
        ("launch", "demo-cpu", "--nodes=0"),
        ("launch", "demo-cpu", "--nodes=1025"),
        ("launch", "demo-cpu", "--node-index=-1"),
        ("launch", "demo-cpu", "--port=1023"),
        ("launch", "demo-cpu", "--port=65535"),
        ("doctor", "--gpus=-1"),
        ("doctor", f"--gpus={10**9}"),
        ("evaluate", "runs/none", "--samples=0"),
        ("evaluate", "runs/none", f"--samples={10**9}"),
        ("evaluate", "runs/none", "--limit=0"),
        ("evaluate", "runs/none", "--step=-1"),
        ("play", "runs/none", "--temperature=-1"),
        ("play", "runs/none", "--temperature=nan"),
        ("play", "runs/none", "--seed=-1"),
        ("report", "runs/none", "--price-per-gpu-hour=nan"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_loaded(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_forked(*arguments, folder=tmp_path)
    option = arguments[-1].partition("=")[0]
    assert (done.code, done.errors.count("\n")) == (78, 2)
    assert f"Invalid value for '{option}'" in done.errors


# --- help ---


def every_command(group: click.Group, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of all commands and groups, such as ("data", "generate")."""
    yield name
    for word, command in group.commands.items():
        yield from every_command(command, (*name, word)) if isinstance(command, click.Group) else [(*name, word)]


@pytest.mark.parametrize("command", every_command(typer.main.get_command(app)))
def test_help_fits_80_columns_and_has_examples_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run_forked(*command, "--help", folder=tmp_path)
    assert done.code == 0
    assert "Usage: mini-r1" in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "[default: None]" not in done.output
    if command not in ((), ("data",)):
        lines = [line.strip() for line in done.output.splitlines()]
        examples = lines[lines.index("Examples:") + 1 :]
        examples = examples[: examples.index("")]
        assert any(line.endswith(" ".join(command)) or f"{' '.join(command)} " in line for line in examples)
        assert all(re.search("mini[-_]r1 ", line) for line in examples)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly",), "No such command 'fly'"),
        (("train",), "Name one recipe: `mini-r1 train RECIPE`"),
        (("score", "--fast"), "No such option: --fast"),
        (("evaluate", "x", "--samples", "many"), "'many' is not a valid integer"),
        (("evaluate", "x", "--newest", "--step", "3"), "--newest and --step are two ways to choose one snapshot"),
    ],
)
def test_usage_errors_are_sentences_and_exit_78(mini_r1: Kit, arguments: tuple[str, ...], said: str) -> None:
    done = mini_r1(*arguments)
    assert done.returncode == 78
    assert said in done.stderr
    assert "--help" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# --- score ---


def test_score_prints_one_json_line_for_each_line(mini_r1: Kit) -> None:
    done = mini_r1("score", stdin=jsonl(RIGHT, WRONG))
    assert done.returncode == 0, done.stderr
    right, wrong = (json.loads(line) for line in done.stdout.splitlines())
    assert right == {"format": 1, "equation": 1, "format_original": 1, "equation_original": 1, "reason": "correct"}
    assert (wrong["equation"], wrong["reason"]) == (0, "number 7 used twice")


def test_score_reads_a_file_as_it_reads_standard_input(mini_r1: Kit, tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    file.write_text(jsonl(RIGHT, WRONG))
    assert mini_r1("score", file, "--json").stdout == mini_r1("score", "-", stdin=jsonl(RIGHT, WRONG)).stdout


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not valid JSON"),
        ('{"nums": [1], "target": 1}', "'completion' is missing"),
        ('{"completion": "x", "nums": 12, "target": 1}', "'nums' must be a list"),
        ('{"completion": "x", "nums": [1.5], "target": 1}', "whole numbers"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
    ],
)
def test_a_malformed_line_is_named_after_the_lines_before_it(mini_r1: Kit, bad: str | bytes, said: str) -> None:
    tail = bad if isinstance(bad, bytes) else bad.encode()
    done = mini_r1("score", stdin=jsonl(RIGHT, RIGHT).encode() + tail + b"\n" + jsonl(RIGHT).encode())
    assert done.returncode == 78
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith("error: standard input:3: ")
    assert said in done.stderr


def test_hostile_text_stays_text(mini_r1: Kit) -> None:
    hostile = {**RIGHT, "completion": "\x1b[2J\x00\ud800</think>\n<answer>6 \x1b[31m* 7</answer>"}
    done = mini_r1("score", stdin=jsonl(hostile))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["equation"] == 0
    broken = mini_r1("score", stdin='{"completion": "x", "nums": [1], "target": "\\u001b[2J"}\n')
    assert broken.returncode == 78
    assert "\x1b" not in broken.stderr


def test_score_keep_going_scores_the_rest_and_reports_bad_lines_at_the_end(mini_r1: Kit, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    bad = ["{", '{"nums": [1], "target": 1}', '{"nums": [0.5], "target": 1, "completion": ""}']
    good = [json.dumps(row) for row in (RIGHT, WRONG)]
    file.write_text("\n".join([bad[0], good[0], *bad[1:], good[1]]) + "\n")
    stopped = mini_r1("score", file)
    assert (stopped.returncode, stopped.stdout) == (78, "")
    done = mini_r1("score", "--keep-going", file)
    assert done.returncode == 78
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("equation") for row in found] == [None, 1, None, None, 0]
    assert "some.jsonl:1: not valid JSON" in found[0]["error"]
    assert done.stderr.startswith("error: 3 bad lines, left out of the scores:\n")
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()[1:]] == [f"{file}:{n}" for n in (1, 3, 4)]
    file.write_text("\n".join(good) + "\n")
    assert mini_r1("score", "--keep-going", file).returncode == 0


def test_score_of_a_file_that_is_not_there(mini_r1: Kit) -> None:
    done = mini_r1("score", "nowhere.jsonl")
    assert done.returncode == 78
    assert "nowhere.jsonl: No such file or directory" in done.stderr


# --- data ---


def test_generate_then_inspect(mini_r1: Kit, tmp_path: Path) -> None:
    out = tmp_path / "problems.jsonl"
    done = mini_r1("data", "generate", "--rows", "300", "--seed", "7", "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == 300
    assert list(rows(out)[0]) == ["target", "nums"]
    facts = json.loads(mini_r1("data", "inspect", out, "--json").stdout)
    assert facts["rows"] == 300
    assert facts["solvable_share"] == 1.0
    assert 0 < facts["needs_mul_div_share"] < 1
    again = tmp_path / "again.jsonl"
    mini_r1("data", "generate", "--rows", "300", "--seed", "7", "--out", again)
    assert again.read_bytes() == out.read_bytes()
    table = mini_r1("data", "inspect", out)
    assert table.returncode == 0
    assert "rows" in table.stdout


def test_inspect_counts_the_real_rows(mini_r1: Kit) -> None:
    facts = json.loads(mini_r1("data", "inspect", ASSETS / "countdown_rows.jsonl", "--json").stdout)
    assert (facts["rows"], facts["exact_duplicates"], facts["solvable_share"]) == (24, 0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("generate", "--rows", "0", "--out", "x.jsonl"),
            "Invalid value for '--rows': 0 is not in the range",
        ),
        (("generate", "--rows", "5", "--out", "."), "is a directory"),
        (("inspect", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_data_mistakes(mini_r1: Kit, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = mini_r1("data", *arguments, cwd=tmp_path)
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_row_is_named_by_file_and_line_also_in_json(mini_r1: Kit, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"nums": [1, 2], "target": 3}\n{"nums": [1, "x"], "target": 3}\n')
    done = mini_r1("data", "inspect", file, "--json")
    assert done.returncode == 78
    assert f"{file}:2: 'nums' must hold whole numbers" in done.stderr
    failure = json.loads(done.stdout)
    assert failure["exit_code"] == 78
    assert f"{file}:2" in failure["error"]


# --- recipes on the command line ---


def test_all_errors_of_a_recipe_are_reported_together_and_nothing_is_started(
    mini_r1: Kit, small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = small_recipe(num_generation=8, beta=-1, scoring="mine")
    done = mini_r1("train", recipe, "--set", "num_generations=1", "--run-dir", tmp_path / "run")
    assert done.returncode == 78
    assert "unknown key 'num_generation'; did you mean 'num_generations'?" in done.stderr
    assert "beta: must be at least 0" in done.stderr
    assert "scoring: must be one of kit, original" in done.stderr
    assert "--set num_generations=1" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_does_not_exist_names_those_that_do(mini_r1: Kit) -> None:
    done = mini_r1("train", "demo-gpu")
    assert done.returncode == 78
    assert "demo-cpu" in done.stderr
