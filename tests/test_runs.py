"""`mini-r1 runs`: every state a run can be in, where its success is from, and files that are broken or hostile."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mini_r1.errors import KitError
from mini_r1.run.files import AppendFile, write_json
from mini_r1.run.listing import ListedRun, list_run, list_runs, runs_table
from mini_r1.run.run_dir import RunDir
from rich.console import Console

Kit = Callable[..., subprocess.CompletedProcess[str]]

NOW = 2_000_000_000.0
STARTED = "2033-05-18T03:33:20Z"
"""NOW in UTC."""


def make(folder: Path, **state: Any) -> RunDir:
    """A run with this state.json; None: without one."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.recipe_file.write_text("# a recipe\nmax_steps: 450\nsave_steps: 25\n")
    write_json(run.run_file, {"model_name_or_path": "some/model", "attempts": [{"attempt": 1, "started": STARTED}]})
    values = {"state": "running", "step": 7, "phase": "rollout", "hang_timeout_s": 600, "heartbeat": NOW - 20, **state}
    write_json(run.state_file, values)
    return run


def metrics(run: RunDir, *found: dict[str, Any]) -> None:
    with closing(AppendFile(run.start_attempt() / "metrics.jsonl")) as lines:
        lines.write_rows(*found)


def result(run: RunDir, name: str, **values: Any) -> None:
    run.evaluation.mkdir(exist_ok=True)
    write_json(run.evaluation / name, {"sampled": 0.5, "ci95": [0.4, 0.6], **values})


def shown(found: list[ListedRun], folder: Path, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(runs_table(found, folder))
    return out.getvalue()


@pytest.mark.parametrize(
    ("changes", "state", "why"),
    [
        ({}, "running", "runs: step 7, phase rollout for 20 s (at most 600)"),
        ({"heartbeat": NOW - 601}, "dead", "is stuck or dead: step 7, phase rollout began 601 s ago"),
        ({"state": "finished", "heartbeat": NOW - 1e6}, "finished", "is finished at step 7"),
        ({"state": "failed", "reason": "No space left"}, "failed", "failed at step 7: No space left"),
        ({"state": "interrupted", "reason": "SIGTERM"}, "saved", "was interrupted at step 7: SIGTERM"),
        ({"state": "dancing"}, "unknown", "has a state that no run has"),
        ({"heartbeat": "yesterday"}, "unknown", "has no heartbeat that is a time"),
        ({"step": None}, "unknown", "has no step"),
        ({"hang_timeout_s": None}, "unknown", "has no valid hang_timeout_s"),
    ],
)
def test_states(tmp_path: Path, changes: dict[str, Any], state: str, why: str) -> None:
    found = list_run(make(tmp_path / "run", **changes).path, NOW)
    assert (found.state, why in found.why) == (state, True)
    assert not found.why.startswith(str(tmp_path))


def test_a_run_that_never_began(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.state_file.unlink()
    found = list_run(run.path, NOW)
    assert (found.state, found.step, found.success, found.seconds) == ("not started", None, None, None)


def test_success_is_the_newest_evaluation_of_the_held_out_part(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    metrics(run, {"step": 3, "success": 0.1, "time": NOW + 60}, {"step": 4, "eval_success": 0.9, "time": NOW + 90})
    found = list_run(run.path, NOW)
    assert (found.success, found.success_from, found.ci95, found.seconds) == (0.1, "training, step 3", None, 90.0)
    result(run, "step-0.json", sampled=0.9)  # the untrained model's
    result(run, "step-10-0badc0de.json", sampled=0.9)  # of another file
    assert list_run(run.path, NOW).success == 0.1
    result(run, "step-2-limit-9.json", sampled=0.2)
    assert list_run(run.path, NOW).success_from == "held out, step 2, 9 problems"
    result(run, "step-2-limit-100.json", sampled=0.2)
    assert list_run(run.path, NOW).success_from == "held out, step 2, 100 problems"
    result(run, "step-2.json", sampled=0.3)
    assert list_run(run.path, NOW).success == 0.3  # all problems before some of them
    result(run, "step-10.json")
    found = list_run(run.path, NOW)
    assert (found.success, found.success_from, found.ci95) == (0.5, "held out, step 10", [0.4, 0.6])


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        ("step-2.json", {}, "50.0% (40-60%) "),
        ("step-2-limit-100.json", {}, "50.0% (40-60%, 100 problems) "),
        ("step-2-limit-100.json", {"ci95": None}, "50.0% (100 problems) "),
        ("step-2.json", {"ci95": None}, "50.0% "),
        (None, {}, "10.0% (training) "),
    ],
)
def test_the_table_marks_what_the_success_was_measured_on(
    tmp_path: Path, file: str | None, values: dict[str, object], expected: str
) -> None:
    run = make(tmp_path / "run")
    metrics(run, {"step": 3, "success": 0.1, "time": NOW + 60})
    if file:
        result(run, file, **values)
    assert expected in shown([list_run(run.path, NOW)], tmp_path)


def test_the_time_of_all_attempts_is_added(tmp_path: Path) -> None:
    run = make(tmp_path / "run", state="finished")
    later = "2033-05-18T04:33:20Z"
    write_json(run.run_file, {"attempts": [{"attempt": 1, "started": STARTED}, {"attempt": 2, "started": later}, 3]})
    metrics(run, {"step": 1, "time": NOW + 100})
    metrics(run, {"step": 2, "time": NOW + 3600 + 50})
    assert list_run(run.path, NOW).seconds == 150.0


def test_size_counts_files_and_follows_no_link(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    before = list_run(run.path, NOW).bytes
    (run.path / "weights").write_bytes(b"x" * 5000)
    (tmp_path / "elsewhere").write_bytes(b"x" * 100_000)
    (run.path / "link").symlink_to(tmp_path / "elsewhere")
    assert before + 5000 <= list_run(run.path, NOW).bytes < before + 6000


def test_runs_of_a_folder_are_sorted_by_heartbeat(tmp_path: Path) -> None:
    make(tmp_path / "old", heartbeat=NOW - 500)
    make(tmp_path / "new", heartbeat=NOW - 5)
    make(tmp_path / "sweep" / "one", heartbeat=NOW - 50)
    (tmp_path / "sweep" / "no-run").mkdir()
    (tmp_path / "file").write_text("")
    assert [Path(found.run).name for found in list_runs(tmp_path, NOW)] == ["new", "one", "old"]
    assert [Path(found.run).name for found in list_runs(tmp_path / "old", NOW)] == ["old"]
    with pytest.raises(KitError, match="no run in"):
        list_runs(tmp_path / "sweep" / "no-run", NOW)
    with pytest.raises(KitError, match="is not a folder"):
        list_runs(tmp_path / "file", NOW)


FILES = ("state.json", "run.json", "recipe.yaml", "evaluation/step-4.json", "attempts/1/metrics.jsonl")
BROKEN = {
    "deep": b"[" * 50_000,
    "null": b"null",
    "list": b"[]",
    "nul": b"\x00" * 100,
    "attempts": b'{"attempts": {"a": 1}}',
    "attempt": b'{"attempts": [[], {"attempt": "1"}, {"attempt": 1, "started": 3}]}',
    "infinite": b'{"sampled": 1e999, "ci95": [0, 1]}',
    "limits": b'{"sampled": 0.5, "ci95": [NaN, "x"]}',
    "kinds": b'{"step": 3, "success": "all", "time": "now"}\n',
}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), what=st.one_of(st.binary(max_size=60), st.sampled_from(sorted(BROKEN))))
def test_no_file_of_a_run_stops_the_table(
    tmp_path_factory: pytest.TempPathFactory, name: str, what: bytes | str
) -> None:
    data = BROKEN[what] if isinstance(what, str) else what
    folder = tmp_path_factory.mktemp("runs")
    run = make(folder / "run")
    metrics(run, {"step": 3, "success": 0.1, "time": NOW + 1})
    result(run, "step-4.json")
    (run.path / name).write_bytes(data)
    (found,) = list_runs(folder, NOW)
    assert shown([found], folder)
    json.loads(json.dumps(asdict(found)), parse_constant=pytest.fail)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = make(tmp_path / "run")
    metrics(run, {"step": 3, "success": 0.1, "time": NOW + 1})
    result(run, "step-4.json")
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)
    shown = subprocess.run(
        [sys.executable, "-m", "mini_r1", "runs", str(tmp_path)], check=False, capture_output=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr


def test_hostile_text_of_a_run_is_printable(tmp_path: Path) -> None:
    reason = "\x1b[31m[bold]disk\x07\u202e <script>"
    run = make(tmp_path / "r\x1b[2Jn", state="failed", reason=reason)
    write_json(run.run_file, {"model_name_or_path": "a\x1bmodel"})
    found = list_runs(tmp_path, NOW)
    text = shown(found, tmp_path, 200)
    assert not set(text) & set("\x1b\x07\u202e")
    assert "[bold]disk" in text
    assert "\x1b" not in (found[0].model or "")


def test_the_command(mini_r1: Kit, tmp_path: Path) -> None:
    run = make(tmp_path / "runs" / "first", state="failed", reason="No space left", heartbeat=time.time())
    result(run, "step-7.json")
    done = mini_r1("runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first" in done.stdout
    assert "failed: failed at step 7" in " ".join(done.stdout.split())
    assert "50.0% (40-60%)" in done.stdout
    (found,) = json.loads(mini_r1("runs", "runs", "--json", cwd=tmp_path).stdout)
    assert (found["state"], found["step"], found["steps"], found["success"]) == ("failed", 7, 450, 0.5)
    assert mini_r1("runs", "gone", cwd=tmp_path).returncode == 78
