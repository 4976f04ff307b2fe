"""`mini-r1 samples`: what is chosen, that hostile text stays text, and that a large file is never held in memory."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import KitError
from mini_r1.run import completions as completions_module
from mini_r1.run.completions import (
    SHOWN_CHARACTERS,
    CompletionFilter,
    filter_completions,
    parse_filter,
    print_completions,
)
from mini_r1.run.files import AppendFile, write_jsonl
from mini_r1.run.reader import read_completions
from mini_r1.run.run_dir import RunDir
from rich.console import Console

from tests.conftest import command

Kit = Callable[..., subprocess.CompletedProcess[str]]

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "escape": "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "nul": "a\x00b",
    "direction": "abc\u202edef\u2066",
    "surrogate": "lone \ud800 one",
    "markup": "[bold]not bold[/bold] [link=file:///etc/passwd]x[/link]",
    "separator": "one\u2028two\rthree",
}


def row(step: int, text: str = "</think>", right: int = 0, reason: str = "no </think>", **more: Any) -> dict[str, Any]:
    return {
        "step": step, "nums": [3, 5, 9], "target": 1, "completion": text, "rewards": {"equation": right},
        "reason": reason, "tokens": 19, "tries": 1, "reflections": 0, "truncated": False, **more,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.path.mkdir()
    made.recipe_file.write_text("")
    return made


def attempt(run: RunDir, *rows: dict[str, Any]) -> Path:
    folder = run.start_attempt()
    with closing(AppendFile(folder / "completions.jsonl")) as lines:
        lines.write_rows(*rows)
    return folder / "completions.jsonl"


def shown(run: RunDir, which: CompletionFilter = CompletionFilter(), **options: Any) -> tuple[str, str]:  # noqa: B008
    out, said = io.StringIO(), io.StringIO()
    settings = {"limit": 0, "last": False, "full": False, "as_json": False, **options}
    print_completions(run, which, out=Console(file=out, width=80), progress=Console(file=said, width=200), **settings)
    return out.getvalue(), said.getvalue()


def steps(run: RunDir, which: CompletionFilter) -> list[int]:
    return [found["step"] for found in filter_completions(read_completions(run), which, Console(file=io.StringIO()))]


# --- what is chosen ---


def test_completions_are_read_from_the_highest_attempt(run: RunDir) -> None:
    attempt(run, row(1, "old 1"), row(2, "old 2"), row(3, "old 3"))
    attempt(run, row(2, "new 2"), row(3, "new 3"))
    text, _ = shown(run)
    assert [word in text for word in ("old 1", "old 2", "old 3", "new 2", "new 3")] == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, None, None), [1, 2, 3, 4]),
        (("2", None, None, None), [2]),
        (("2-3", None, None, None), [2, 3]),
        ((" 3 - 9 ", None, None, None), [3, 4]),
        ((None, True, None, None), [2, 4]),
        ((None, False, None, None), [1, 3]),
        ((None, None, "USED twice", None), [3]),
        ((None, None, None, r"\bwait\b"), [2, 3]),
        (("1-3", True, None, "wait"), [2]),
        (("9", None, None, None), []),
    ],
)
def test_filters(run: RunDir, arguments: tuple[Any, ...], expected: list[int]) -> None:
    attempt(
        run,
        row(1),
        row(2, "Wait, no", 1, "correct"),
        row(3, "wait", 0, "number 3 used twice"),
        row(4, "waiting", 1, "correct"),
    )
    assert steps(run, parse_filter(*arguments)) == expected


def test_the_first_or_the_last_ones(run: RunDir) -> None:
    attempt(run, *(row(step, f"number {step}") for step in range(1, 8)))
    first, said = shown(run, limit=2)
    assert [f"number {n}" in first for n in (1, 2, 3, 7)] == [True, True, False, False]
    assert said == "the first 2; --limit 0 shows all that match\n"
    last, said = shown(run, limit=2, last=True)
    assert last.index("number 6") < last.index("number 7")
    assert "number 5" not in last
    assert said.startswith("the last 2;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", None, None, None), "--step must be a step or a range of them, such as 50 or 50-100, found 'x'"),
        (("-3", None, None, None), "--step must be"),
        (("100-50", None, None, None), "--step 100-50 ends before it begins"),
        ((None, None, None, "("), r"--grep must be a regular expression, and '\(' is none"),
    ],
)
def test_invalid_options(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(KitError, match=message):
        parse_filter(*arguments)


def test_an_endless_search_is_stopped(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions_module, "GREP_S", 0.2)
    attempt(run, row(1, "a" * 60 + "!"))
    with pytest.raises(KitError, match=r"--grep '\(a\+\)\+\$' takes more than .* on one completion of step 1"):
        shown(run, parse_filter(None, None, None, "(a+)+$"))
    assert "a!" in shown(run, parse_filter(None, None, None, "a+!$"))[0]


def test_a_run_without_completions_or_matches_is_reported(run: RunDir) -> None:
    assert "no completions in it yet" in shown(run)[1]
    attempt(run, row(1))
    assert "none of its completions matches" in shown(run, CompletionFilter(right=True))[1]


def test_answers_to_held_out_problems_are_separate(run: RunDir) -> None:
    attempt(run, row(1, "in training"))
    assert "no answers to held-out problems in it yet: `mini-r1 evaluate` keeps them" in shown(run, held_out=True)[1]
    run.evaluation.mkdir()
    write_jsonl(
        run.evaluation / "step-5-completions.jsonl", [row(5, "held out", kind="greedy"), row(5, kind="\x1b[1m")]
    )
    out, _ = shown(run, held_out=True)
    assert "in training" not in out
    assert [line.split(" | ")[:2] for line in out.splitlines() if line.startswith("step")] == [
        ["step 5", "greedy"], ["step 5", "[3, 5, 9] -> 1"],
    ]  # fmt: skip


# --- hostile text ---


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_a_completion_is_shown_as_text(run: RunDir, text: str) -> None:
    attempt(run, row(1, text, reason=text, nums=text, target=text))
    out, _ = shown(run)
    assert not set(out) & set("\x1b\x07\x00\x9b\u202e\u2066\u2028\r\ud800")
    out.encode("utf-8")
    for visible in ("<script>alert(1)</script>", "[bold]not bold[/bold]"):
        assert (visible in out) == (visible in text)
    as_json = json.dumps(row(1, text))
    assert as_json.isascii()


def test_a_line_of_a_megabyte_is_cut_with_the_number_of_characters_left(run: RunDir) -> None:
    attempt(run, row(1, "x" * (1 << 20)))
    out, _ = shown(run)
    assert out.count("x") < SHOWN_CHARACTERS + 200
    assert f"... and {(1 << 20) - SHOWN_CHARACTERS:,} more characters: --full shows them" in out
    assert shown(run, full=True)[0].count("x") >= 1 << 20


def test_invalid_bytes_and_lines_are_survived(run: RunDir) -> None:
    path = attempt(run, row(1, "first"))
    good = json.dumps(row(2, "second")).encode()
    with path.open("ab") as file:
        file.write(b"\x00" * 4096 + b"\n")
        file.write(good.replace(b"second", b"sec\xff\xfeond") + b"\n")
        file.write(b"[" * 100_000 + b"\n")
        file.write(b'{"step": "3"}\n{"step": true}\n{"step": null}\n[1]\n7\n')
        file.write(b'{"step": 3}\n{"step": 4, "completion": 7, "rewards": [], "reason": {}, "nums": {"a": []}}\n')
        file.write(good[:40])  # cut short by a kill
    out, _ = shown(run)
    assert "sec\ufffd\ufffdond" in out
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("step")] == [
        "step 1", "step 2", "step 3", "step 4",
    ]  # fmt: skip
    assert "verdict unknown" in out


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_json_is_a_line_of_ascii_for_each(run: RunDir, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(run, row(1, text), row(2, text))
    shown(run, as_json=True)
    out = capsys.readouterr().out
    assert out.isascii()
    assert [json.loads(line)["completion"] for line in out.splitlines()] == [text, text]


# --- a large file ---


def test_a_file_is_read_line_by_line_and_no_further_than_needed(run: RunDir) -> None:
    path = attempt(run, row(1, "first"))
    with path.open("ab") as file:
        file.truncate(1 << 40)  # a hole of a terabyte, which no test could read
    found = list(islice(filter_completions(read_completions(run), CompletionFilter(), Console(file=io.StringIO())), 1))
    assert [each["completion"] for each in found] == ["first"]


def test_a_long_file_is_filtered_in_little_memory(run: RunDir) -> None:
    """In a process with 400 MB of address space, including the interpreter and its libraries.

    150 MB of file here: more than what is left of that.
    """
    path = attempt(run, row(1, "first"))
    line = json.dumps(row(2, "filler " * 4000)).encode() + b"\n"
    with path.open("ab") as file:
        for _ in range(150_000_000 // len(line)):
            file.write(line)
        file.write(json.dumps(row(3, "needle")).encode() + b"\n")

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

    done = subprocess.run(
        [*command(), "samples", str(run.path), "--grep", "needle", "--json"],
        capture_output=True, text=True, preexec_fn=little, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3


# --- the command ---


def test_the_command(mini_r1: Kit, run: RunDir, tmp_path: Path) -> None:
    attempt(run, row(1), row(2, "wait\x1b[2J", 1, "correct"))
    done = mini_r1("samples", run.path, "--ok", "--grep", "WAIT")
    assert done.returncode == 0, done.stderr
    assert "step 2 | [3, 5, 9] -> 1 | right | tokens 19" in done.stdout
    assert "<think>wait\\x1b[2J" in done.stdout
    assert mini_r1("samples", tmp_path / "none").returncode == 78
    wrong = mini_r1("samples", run.path, "--step", "x", "--json")
    assert (wrong.returncode, json.loads(wrong.stdout)["exit_code"]) == (78, 78)


def test_it_needs_no_torch(run: RunDir) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None; from mini_r1.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "samples", str(run.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
