"""What wandb and SwanLab get: TensorBoard's names, completions, held-out results, one run for all attempts.

`stand_in_trackers/` has stand-ins for both packages; the last test runs the real wandb, without a server.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training.curves import tag
from mini_r1.training.tracking import Trackers, report_held_out
from rich.console import Console

from tests.cluster.real_stack import PYTHON, needs_vllm
from tests.conftest import REPO, rows

SECRET = "0123456789abcdef0123456789abcdef01234567"
RESULTS = [
    {"sampled": 0.1, "greedy": 0.2, "tries": 1.5, "pass_at_k": {"4": {"value": 0.3}}, "provenance": {"step": 0}},
    {"sampled": 0.5, "greedy": None, "tries": 2.0, "pass_at_k": {}, "provenance": {"step": 2}},
]
HELD_OUT = [
    {"held_out/greedy": 0.2, "held_out/sampled": 0.1, "held_out/tries": 1.5, "held_out/pass@4": 0.3},
    {"held_out/sampled": 0.5, "held_out/tries": 2.0},
]


def forget_trackers() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "swanlab")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def tracked(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunDir, Path]]:
    """A run of two steps with both trackers, and the calls that they got; more calls are added to the same file."""
    from tests.conftest import write_recipe

    folder = tmp_path_factory.mktemp("tracked")
    run, calls = RunDir(folder / "run"), folder / "calls.jsonl"
    recipe = write_recipe(
        folder / "tracked.yaml", untrained, max_steps=2, report_to=["wandb", "swanlab"],
        eval_strategy="steps", eval_steps=2, eval_problems=4,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(REPO / "tests" / "training" / "stand_in_trackers")
        for name, value in {
            "STAND_IN_LOG": calls, "WANDB_API_KEY": SECRET, "SWANLAB_API_KEY": SECRET, "HOME": folder
        }.items():  # fmt: skip
            patched.setenv(name, str(value))
        forget_trackers()
        output = io.StringIO()
        with redirect_stdout(output):
            assert train(str(recipe), [], run.path) == ExitCode.FINISHED
        assert output.getvalue() == ""  # SwanLab prints, and `demo --json` needs the standard output
        yield run, calls
    forget_trackers()


def logged(calls: Path, tracker: str, call: str = "log") -> list[dict[str, Any]]:
    return [row for row in rows(calls) if row["tracker"] == tracker and row["call"] == call]


@pytest.mark.parametrize("tracker", ["wandb", "swanlab"])
def test_figures_have_tensorboards_names(tracked: tuple[RunDir, Path], tracker: str) -> None:
    run, calls = tracked
    figures = [row["figures"] for row in logged(calls, tracker)]
    names = {name for each in figures for name in each}
    written = {tag(name) for row in read_metrics(run) for name in row} - {"train/step", "train/time"}
    assert written <= names
    assert {"rollout/tries", "rollout/success", "eval/success"} <= names
    groups = {name.partition("/")[0] for name in names}
    assert groups <= {"rollout", "rewards", "loss", "time", "eval", "train", "completions"}


def test_completions_are_rows_and_texts(tracked: tuple[RunDir, Path]) -> None:
    run, calls = tracked
    tables = [row["figures"] for row in logged(calls, "wandb") if "completions/shown" in row["figures"]]
    texts = [row for row in logged(calls, "swanlab") if "completions/shown" in row["figures"]]
    assert [table["train/global_step"] for table in tables] == [1, 2]
    assert [row["step"] for row in texts] == [1, 2]
    for table, row in zip(tables, texts, strict=True):
        shown = table["completions/shown"]
        assert shown["columns"] == ["step", "answer", "text"]
        assert [(name, text) for _, name, text in shown["data"]] == [
            (text["caption"], text["data"]) for text in row["figures"]["completions/shown"]
        ]
        assert "<think>" in shown["data"][0][2]


def test_a_run_is_named_after_its_directory_and_has_one_id(tracked: tuple[RunDir, Path]) -> None:
    run, calls = tracked
    run_id = run.read_record()["run_id"]
    for tracker, name, expected in (("wandb", "name", run_id), ("swanlab", "experiment_name", run_id[:21])):
        first = logged(calls, tracker, "init")[0]
        assert first["names"][name] == "run"
        assert list(first["environment"].values()) == [expected, "allow"]
        assert logged(calls, tracker, "finish"), "else the next run of this process would be the same one"
    assert not {"WANDB_RUN_ID", "SWANLAB_RUN_ID"} & set(os.environ)


def test_later_evaluations_reach_the_same_run(tracked: tuple[RunDir, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, calls = tracked
    before = len(rows(calls))
    report_held_out(run, RESULTS, Console(quiet=True))
    added = rows(calls)[before:]
    for tracker in ("wandb", "swanlab"):
        init, *logs, end = [row for row in added if row["tracker"] == tracker]
        assert init["environment"] == logged(calls, tracker, "init")[0]["environment"]
        assert [{k: v for k, v in row["figures"].items() if k != "train/global_step"} for row in logs] == HELD_OUT
        assert [row.get("step", row["figures"].get("train/global_step")) for row in logs] == [0, 2]
        assert end["call"] == "finish"
    assert capsys.readouterr().out == ""  # `mini-r1 evaluate --json` prints JSON and nothing else


def test_a_tracker_that_cannot_report_a_result_is_a_warning(
    tracked: tuple[RunDir, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = tracked
    before = len(rows(calls))
    monkeypatch.setenv("STAND_IN_REFUSES", "1")
    monkeypatch.delenv("SWANLAB_API_KEY")
    output = io.StringIO()
    report_held_out(run, RESULTS, Console(file=output, width=1000))
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("warning: the held-out results were not reported: ") for line in lines)
    assert "wandb: no server" in output.getvalue()
    assert "there is no SWANLAB_API_KEY" in output.getvalue()
    assert [row["call"] for row in rows(calls)[before:] if row["tracker"] == "swanlab"] == []


def test_a_failed_run_failed_for_the_trackers_too(tracked: tuple[RunDir, Path]) -> None:
    run, calls = tracked
    before = len(rows(calls))
    trackers = Trackers(load_recipe(run.recipe_file), run).__enter__()
    for name in ("wandb", "swanlab"):
        sys.modules[name].init()
    trackers.__exit__(ValueError, ValueError("x"), None)
    ends = [row for row in rows(calls)[before:] if row["call"] == "finish"]
    assert sorted(ends, key=lambda row: row["tracker"]) == [
        {"tracker": "swanlab", "call": "finish", "state": "CRASHED"},
        {"tracker": "wandb", "call": "finish", "exit_code": 1},
    ]


def test_no_key_is_in_the_run_directory(tracked: tuple[RunDir, Path]) -> None:
    run, _ = tracked
    for path in run.path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_swanlab_is_refused_before_torch_if_it_is_not_installed(
    mini_r1: Callable[..., subprocess.CompletedProcess[str]], small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    done = mini_r1("train", small_recipe(report_to="swanlab"), "--run-dir", tmp_path / "run")
    assert done.returncode == 78
    assert f"`uv pip install --python {sys.executable} swanlab==0.7.20`" in done.stderr
    assert "loading torch" not in done.stderr


WANDB_FIGURES = """
import json, sys
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore
store, found = DataStore(), []
store.open_for_scan(sys.argv[1])
while (data := store.scan_data()) is not None:
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.WhichOneof("record_type") == "run":
        found.append({"id": record.run.run_id, "name": record.run.display_name})
    for item in record.history.item:
        found.append({"key": item.key or "/".join(item.nested_key), "value": item.value_json})
print(json.dumps(found))
"""


@pytest.mark.real
@needs_vllm
def test_the_real_wandb_without_a_server(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Training and a later evaluation write two offline runs with one id, which `wandb sync --append` joins."""
    recipe = small_recipe(max_steps=2, report_to=["wandb"])
    environment = {
        **os.environ, "MINI_R1_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path),
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_API_KEY": SECRET,
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # nothing listens there
    }  # fmt: skip
    for command in (["train", str(recipe), "--run-dir", "run"], ["evaluate", "run", "--newest", "--samples", "1"]):
        done = subprocess.run(
            [PYTHON, "-m", "mini_r1", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    found = []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        read = [PYTHON, "-c", WANDB_FIGURES, path]
        found.append(json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout))
    training, evaluation = found
    run_id = RunDir(tmp_path / "run").read_record()["run_id"]
    assert training[0] == evaluation[0] == {"id": run_id, "name": "run"}
    assert {"rollout/tries", "rollout/success", "completions/shown/_type"} <= {each.get("key") for each in training}
    assert {"held_out/sampled", "held_out/tries"} <= {each.get("key") for each in evaluation}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
