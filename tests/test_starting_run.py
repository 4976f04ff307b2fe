"""A run is looked at while it makes its warm start, before there is any recipe or metric, and after it was killed."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from mini_r1 import api
from mini_r1.errors import KitError
from mini_r1.run.run_dir import RunDir

from tests.training.workers import Ended, Workers, run_forked, train, wait_until

OPTIONS = (
    "warm_start.traces=300", "warm_start.min_accuracy=0", "dataset_rows=40", "max_steps=1", "warmup_steps=0",
    "gradient_accumulation_steps=1", "per_device_train_batch_size=2",
)  # fmt: skip


class Starting:
    """A run in the middle of a warm start that does not end soon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = RunDir(folder / "runs" / "first")
        self.cache = {"MINI_R1_CACHE": str(folder / "cache")}
        self.workers = self.start("1000000")

    def start(self, steps: str) -> Workers:
        sets = [f"--set={option}" for option in (*OPTIONS, f"warm_start.steps={steps}")]
        args = ("demo-cpu", "--run-dir", self.run.path, *sets)
        return Workers(None, train, *args, folder=self.folder / "logs", environment=self.cache)

    def kit(self, *args: str | Path) -> Ended:
        """Run a command of the kit that looks at it."""
        return run_forked(*args, folder=self.folder / "looks")


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starting]:
    made = Starting(tmp_path_factory.mktemp("starting"))
    with made.workers:
        wait_until(lambda: made.run.read_state().get("phase") == "model")
        yield made


@pytest.fixture
def doing(starting: Starting) -> str:
    """How each look begins."""
    assert starting.workers.running()
    assert not starting.run.recipe_file.exists()
    return f"{starting.run.path} runs: step 0, phase model for "


def test_health_and_runs_show_its_phase(starting: Starting, doing: str) -> None:
    health = starting.kit("health", starting.run.path)
    assert (health.code, health.output[: len(doing)]) == (0, doing)
    (row,) = json.loads(starting.kit("runs", starting.run.path.parent, "--json").output)
    assert (row["state"], row["step"]) == ("running", 0)


def test_samples_shows_its_phase_and_that_there_are_none(starting: Starting, doing: str) -> None:
    for options in ([], ["--held-out"], ["--json"]):
        ended = starting.kit("samples", starting.run.path, *options)
        assert (ended.code, ended.output) == (0, "")
        said = ended.errors.splitlines()
        assert said[0].startswith(doing)
        assert "in it yet" in said[1]


def test_a_bundle_has_its_state(starting: Starting, doing: str) -> None:
    out = starting.folder / "bundle.tar.gz"
    ended = starting.kit("bundle", starting.run.path, "--out", out)
    assert ended.code == 0, ended.errors
    assert ended.errors.startswith(doing)
    with tarfile.open(out) as archive:
        state = archive.extractfile("mini-r1-first/state.json")
        assert state is not None
        assert json.load(state)["phase"] == "model"


@pytest.mark.parametrize(
    "command", [("evaluate", "evaluate"), ("play", "play with"), ("publish", "publish")], ids=lambda value: value[0]
)
def test_commands_that_need_a_snapshot_show_its_phase_and_are_retried(
    starting: Starting, doing: str, command: tuple[str, str]
) -> None:
    name, verb = command
    options = ["--repo", "me/model", "--dry-run"] if name == "publish" else []
    ended = starting.kit(name, starting.run.path, *options)
    assert ended.code == 150, ended.errors
    assert doing in ended.errors
    assert f"it has no snapshot to {verb} yet" in ended.errors
    assert "loading torch" not in ended.errors


def test_the_report_shows_its_phase(starting: Starting, doing: str) -> None:
    ended = starting.kit("report", starting.run.path)
    assert ended.code == 0, ended.errors
    assert ended.output.startswith("first: running at step 0: phase model for ")
    assert "missing: the run is starting: recipe.yaml comes with its first attempt" in ended.output
    page = (starting.run.path / "report.html").read_text()
    assert "running at step 0: phase model for " in page


def test_a_killed_start_is_dead_at_once_and_the_same_command_resumes_it(starting: Starting, doing: str) -> None:
    starting.workers.kill()
    starting.workers.wait()
    health = starting.kit("health", starting.run.path)
    assert health.code == 1
    assert "is dead: step 0, phase model, and its process is gone; the same command resumes it" in health.output
    (row,) = json.loads(starting.kit("runs", starting.run.path.parent, "--json").output)
    assert row["state"] == "dead"
    report = starting.kit("report", starting.run.path)
    assert report.code == 0, report.errors
    assert "first: dead at step 0: phase model, and its process is gone" in report.output
    evaluated = starting.kit("evaluate", starting.run.path)
    assert (evaluated.code, "is dead: step 0" in evaluated.errors) == (78, True)

    with starting.start("4") as workers:  # the report in its directory is no reason to refuse
        (ended,) = workers.wait(120)
    assert ended.code == 0, ended.errors
    assert starting.run.read_state()["state"] == "finished"


def train_from(import_packages: str, *args: str | Path) -> None:
    """`mini-r1 train ARGS` whose import of torch does not end, or fails."""

    @contextmanager
    def needs_extra(*names: str, **options: Any) -> Iterator[None]:
        while import_packages == "slow":
            Path(args[-1]).with_name("importing").touch()
            time.sleep(0.1)
        raise KitError("this command needs torch")
        yield

    api.needs_extra = needs_extra
    train(*args)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Workers]:
    """A start of the demo recipe in tmp_path/runs/first whose import of torch is replaced."""

    def start(import_packages: str, **environment: str) -> Workers:
        args = ("demo-cpu", "--run-dir", tmp_path / "runs" / "first")
        return Workers(
            None, train_from, import_packages, *args, folder=tmp_path / "logs", environment=environment
        )  # fmt: skip

    return start


def test_a_run_can_be_looked_at_while_torch_is_imported_and_is_dead_at_once_when_killed(
    start: Callable[..., Workers], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "runs" / "first")
    with start("slow") as workers:
        wait_until(run.path.with_name("importing").exists)
        assert run_forked("health", run.path, folder=tmp_path).output.startswith(
            f"{run.path} runs: step 0, phase start"
        )
        with pytest.raises(KitError, match="another process is training"), run.claim():
            raise AssertionError("it holds no lock")
        workers.kill()
        workers.wait()
    assert "is dead: step 0, phase start" in run_forked("health", run.path, folder=tmp_path).output
    (row,) = json.loads(run_forked("runs", run.path.parent, "--json", folder=tmp_path).output)
    assert row["state"] == "dead"


def test_a_refused_import_leaves_everything_as_it_was(start: Callable[..., Workers], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "first")
    with start("refused") as workers:
        (ended,) = workers.wait()
    assert (ended.code, "this command needs torch" in ended.errors) == (78, True)
    assert not run.path.exists()
    run.path.mkdir()
    run.write_state("failed", step=0, exit_code=150, reason="no disk")
    before = run.read_state()
    with start("refused") as workers:
        assert [ended.code for ended in workers.wait()] == [78]
    assert run.read_state() == before


@pytest.mark.parametrize("case", ["another rank", "held", "finished"])
def test_only_rank_0_of_a_run_that_it_can_start_shows_its_start(
    start: Callable[..., Workers], tmp_path: Path, case: str
) -> None:
    run = RunDir(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    run.write_state("finished" if case == "finished" else "running", step=4, phase="rollout")
    before = run.read_state()
    # A worker of a launcher, which has asked whether the run is held or finished.
    worker = {"RANK": str(int(case == "another rank")), "MINI_R1_SUPERVISOR": str(tmp_path)}
    with run.claim() if case == "held" else nullcontext(), start("slow", **worker):
        wait_until(run.path.with_name("importing").exists)
        assert run.read_state() == before
