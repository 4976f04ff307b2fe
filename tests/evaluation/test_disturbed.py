"""An evaluation that something happens to: a signal, a full disk, a second one, snapshots that come and go."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.command_tools import stop_signals
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation import measuring
from mini_r1.evaluation.answer_engines import Engines
from mini_r1.evaluation.evaluate_run import Series, evaluate_run_or_model
from mini_r1.evaluation.measuring import KNOWN_AFTER_S, claim_result, describe_time_left
from mini_r1.generation.model import StartingPoint
from mini_r1.run.files import AppendFile
from mini_r1.run.manifest import seal
from mini_r1.run.reader import list_held_out_results, read_held_out_completions
from mini_r1.run.run_dir import RunDir
from rich.console import Console

from tests.small_disk import PAGE, fill, make_room, small_disk
from tests.training.workers import Workers, kit, run_forked

UNKNOWN = StartingPoint(None, None, "it is not known")

Evaluate = Callable[..., tuple[Series, str]]


@pytest.fixture
def evaluate(run: RunDir) -> Evaluate:
    """Evaluate the snapshots of the run; what came of it, and what was said."""

    def call(problems: Path | None = None, **options: Any) -> tuple[Series, str]:
        said = io.StringIO()
        console = Console(file=said, width=300, force_terminal=False)
        found = evaluate_run_or_model(
            str(run.path), problems, samples=1, limit=2, every=True, start=UNKNOWN, console=console, **options
        )
        return found, said.getvalue()

    return call


def before_loading(monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[], None]) -> None:
    """Between a snapshot's verification and the reading of its weights."""
    load = Engines.load

    def disturbed(self: Engines, chosen: Any, say: Any) -> Any:
        if chosen.step == step:
            happens()
        return load(self, chosen, say)

    monkeypatch.setattr(Engines, "load", disturbed)


# --- snapshots that come and go ---


def test_a_snapshot_that_is_deleted_while_it_is_loaded_is_left_out(
    run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_loading(monkeypatch, 10, lambda: shutil.rmtree(run.snapshots / "step-10"))
    series, said = evaluate()
    assert (series.measured, list(series.errors)) == ([5], [10])
    assert "was deleted or replaced meanwhile: the same command measures what is there now" in series.errors[10]
    assert "step 10 is left out: " in said


def test_a_snapshot_that_is_deleted_before_its_turn_is_left_out(
    run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_loading(monkeypatch, 10, lambda: shutil.rmtree(run.snapshots / "step-5"))
    series, _ = evaluate()
    assert (series.measured, list(series.errors)) == ([10], [5])


def test_figures_are_never_filed_under_other_weights_than_those_measured(
    run: RunDir, evaluate: Evaluate, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run saves the step anew while the old weights are being loaded: whose figures would these be?"""

    def saved_anew() -> None:
        scratch = run.snapshots / ".step-10"
        shutil.copytree(model_directory, scratch)
        (scratch / "note.txt").write_text("another one")
        seal(scratch, run.snapshots / "step-10", run_id=run.run_id)

    before_loading(monkeypatch, 10, saved_anew)
    series, _ = evaluate()
    assert list(series.errors) == [10]
    assert not (run.evaluation / "step-10-limit-2.json").exists()
    monkeypatch.undo()
    assert evaluate()[0].measured == [10]


# --- two at a time ---


def test_what_another_process_measures_is_waited_for_and_taken_over(
    run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds step 10 until step 5, which is free, has been measured here."""
    expected, _ = evaluate()
    result = run.evaluation / "step-10-limit-2.json"
    text = result.read_text()
    shutil.rmtree(run.evaluation)
    run.evaluation.mkdir()
    holds, release = threading.Event(), threading.Event()

    def other() -> None:
        with claim_result(result, wait=True):
            holds.set()
            release.wait(60)
            result.write_text(text)

    thread = threading.Thread(target=other)
    thread.start()
    assert holds.wait(60)
    measure = measuring.measure

    def measured(*args: Any, **options: Any) -> Any:
        release.set()
        return measure(*args, **options)

    monkeypatch.setattr(measuring, "measure", measured)
    series, said = evaluate()
    thread.join()
    assert (series.measured, series.already_there) == ([5], [10])
    assert series.evaluations[1] == expected.evaluations[1]
    assert "step 10: another process is measuring it\n" in said
    assert [path.name for path in run.evaluation.glob(".*")] == []


def test_a_claim_goes_with_its_process(tmp_path: Path) -> None:
    result = tmp_path / "step-1.json"
    code = (
        "import sys, time; from pathlib import Path; from mini_r1.evaluation.measuring import claim_result\n"
        "with claim_result(Path(sys.argv[1]), wait=True):\n    print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(result)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with claim_result(result, wait=False) as held:
            assert not held
        other.kill()
        other.wait()
        with claim_result(result, wait=False) as held:
            assert held
    assert list(tmp_path.iterdir()) == []


# --- disks ---


@pytest.mark.parametrize("pages", [0, 1, 5])
def test_a_full_disk_is_a_sentence_and_with_room_the_same_command_measures_what_is_missing(
    run: RunDir, tmp_path: Path, evaluate: Evaluate, pages: int
) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        full = RunDir(Path(shutil.copytree(run.path, disk / "run")))
        fill(disk, pages * PAGE)
        arguments = ("evaluate", full.path, "--samples", "1", "--limit", "2")
        ended = run_forked(*arguments, folder=tmp_path / "logs")
        assert ended.code == 150, ended.errors
        assert "Traceback" not in ended.errors
        (sentence,) = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
        assert re.search(rf"cannot write {full.evaluation}/step-\S+\.jsonl?: No space left .* KiB left\)", sentence)
        assert sentence.endswith("then run the same command again: what was measured before is kept.")
        assert [path.name for path in full.evaluation.glob(".*")] == []
        before = len(list(list_held_out_results(full)))
        make_room(disk)
        ended = run_forked(*arguments, "--json", folder=tmp_path / "logs")
        assert ended.code == 0, ended.errors
        series = json.loads(ended.output)["series"]
        assert len(series["already_there"]) == before == (pages == 5)
        assert sorted(series["measured"] + series["already_there"]) == [5, 10]
        assert list(read_held_out_completions(full)) == written_by_one(evaluate, run)


def written_by_one(evaluate: Evaluate, run: RunDir) -> list[dict[str, Any]]:
    """What an evaluation that nothing happens to keeps."""
    evaluate()
    return list(read_held_out_completions(run))


def test_a_run_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Engines, "load", never)
    run.evaluation.write_text("a file where the folder should be")
    with pytest.raises(KitError, match=r"cannot write .*/evaluation: File exists.* measure a snapshot as a model"):
        evaluate()
    run.evaluation.unlink()

    def read_only(dir: Path) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(measuring, "TemporaryFile", read_only)  # stand-in for a read-only mount
    with pytest.raises(KitError, match=r"cannot write .*: Read-only file system\. Give this user"):
        evaluate()


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_reported_as_a_stop(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stopped() -> None:
        with stop_signals(lambda: "what was measured is kept"):
            os.kill(os.getpid(), number)
            time.sleep(60)

    with pytest.raises(KitError, match="what was measured is kept") as caught:
        stopped()
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_stopped_command_names_what_is_kept(run: RunDir, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped while it waits for a step that this test holds: no moment that has to be met."""
    run.evaluation.mkdir()
    arguments = ("evaluate", run.path, "--samples", "1", "--newest", "--json")
    logs = tmp_path / "logs"
    with (
        claim_result(run.evaluation / "step-10.json", wait=False),
        Workers(None, kit, *arguments, folder=logs) as workers,
    ):
        while not any("waiting for another process" in path.read_text() for path in logs.iterdir()):
            assert workers.running()
            time.sleep(0.01)
        workers.send(number)
        (ended,) = workers.wait()
    assert ended.code == 143
    assert "the same command resumes" in ended.errors
    assert "Traceback" not in ended.errors
    assert json.loads(ended.output)["exit_code"] == 143


# --- what is said of the rest, and of problems that were trained on ---


@pytest.mark.parametrize(
    ("seconds", "made", "of_step", "of_others", "expected"),
    [
        (KNOWN_AFTER_S / 2, 10, 390, 800, ""),
        (60.0, 0, 400, 800, ""),
        (60.0, 100, 300, 800, "about 11 min left, 3 min of this step"),
        (60.0, 100, 300, 0, "about 3 min left"),
        (240.0, 400, 0, 800, "about 8 min left"),  # between two steps
        (300.0, 500, 300, 400, "about 7 min left, 3 min of this step"),  # the steps before count
        (60.0, 400, 0, 0, ""),
    ],
)
def test_the_time_left_is_estimated_for_all_steps_and_for_this_one(
    seconds: float, made: int, of_step: int, of_others: int, expected: str
) -> None:
    assert describe_time_left(seconds, made, of_step, of_others) == expected


def test_the_time_left_for_all_steps_is_shown_in_a_pipe_from_the_second_step_on(
    run: RunDir, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "KNOWN_AFTER_S", 0.0)
    monkeypatch.setattr("mini_r1.console.ProgressLine.PLAIN_EVERY", 0.0)
    _, said = evaluate()
    first, second = (re.findall(rf"step {step} .* completions (\d)/4(?:  about (.*))?", said) for step in (10, 5))
    assert all(re.fullmatch(r"\d+ s left, \d+ s of this step", text) for count, text in first if count != "4"), said
    assert re.fullmatch(r"\d+ s left", first[-1][1]), said
    assert all(re.fullmatch(r"\d+ s left", text) for count, text in second if count != "4"), said
    assert second[-1] == ("4", "")


def test_problems_that_were_trained_on_are_reported(run: RunDir, evaluate: Evaluate, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"nums": [1, 2, 3], "target": 6}\n{"nums": [4, 5, 6], "target": 15}\n')
    series, said = evaluate(mine)
    assert "trained on" not in said
    assert "trained on" not in series.evaluations[0]["provenance"]["selection"]
    with closing(AppendFile(run.start_attempt() / "completions.jsonl")) as lines:
        lines.write_rows({"step": 1, "nums": [3, 2, 1], "target": 6}, {"step": 1, "nums": [4, 5, 6], "target": 7})
        lines.write_rows({"step": 1, "nums": "x", "target": []}, {"step": 1, "nums": [[]], "target": 6}, {"step": 2})
    series, said = evaluate(mine, again=True)
    assert "1 of these 2 problems were trained on (attempts/*/completions.jsonl): this is no held-out success" in said
    assert series.evaluations[0]["provenance"]["selection"] == "all 2 problems, 1 of them trained on"
