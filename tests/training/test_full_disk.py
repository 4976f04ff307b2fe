"""A disk that fills up, becomes read-only or disappears under a run: one sentence, exit code 150, and nothing lost.

A run writes to a small tmpfs. When it opens its n-th file there, another writer takes all but some pages of it, so
every moment and every file has its turn. Five such runs are quick, 25 more are exhaustive.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.manifest import verify
from mini_r1.run.run_dir import RunDir
from mini_r1.training.checkpoints import space_needed

from tests.conftest import write_recipe
from tests.small_disk import PAGE, fill, make_room, small_disk
from tests.training.outcome import outcome
from tests.training.workers import Ended, Workers, train

Action = Callable[..., object]
OTHER_USER = 65534


def train_until(opened: int, action: Action, arguments: tuple[Any, ...], *args: Any) -> None:
    """`mini-r1 train RECIPE --run-dir RUN`; the first rank calls `action` when it opens its n-th file in RUN.

    How many it opened is written to `opened` in the folder of RUN.
    """
    run, count = str(args[-1]), 0

    def look(event: str, about: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open" and isinstance(about[0], str) and about[0].startswith(run):
            count += 1
            if count == opened:
                action(*arguments)

    first = os.environ.get("RANK", "0") == "0"
    if first:
        sys.addaudithook(look)
    if first and opened == 0:  # at exit, because `mini-r1 train` ends the process
        atexit.register(lambda: Path(run).with_name("opened").write_text(str(count)))
    train(*args)


def started(ranks: int | None, logs: Path, function: Action, *args: Any) -> list[Ended]:
    with Workers(ranks, function, *args, folder=logs) as workers:
        return workers.wait(120)


def the_sentence(ended: Ended, *parts: str) -> str:
    """The error of a process that ended with 150 and printed no traceback."""
    assert ended.code == 150, ended.errors
    assert "Traceback" not in ended.errors + ended.output
    (line,) = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    for part in (*parts, "run the same command again"):
        assert part in line, line
    return line


@dataclass(frozen=True, slots=True)
class Whole:
    """An uninterrupted run."""

    outcome: dict[str, Any]
    opened: int
    """Files that its first rank opened in the run directory."""
    save_bytes: int
    """Size of a checkpoint and its snapshot."""


@pytest.fixture(scope="module")
def recipe(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "six.yaml"
    return write_recipe(path, untrained, max_steps=6, save_steps=2, logging_steps=2)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | None], Whole]:
    """Return an uninterrupted run with a given number of ranks."""
    known: dict[int | None, Whole] = {}

    def get(ranks: int | None) -> Whole:
        if ranks not in known:
            folder = tmp_path_factory.mktemp("whole")
            run = RunDir(folder / "run")
            for ended in started(ranks, folder / "logs", train_until, 0, print, (), recipe, "--run-dir", run.path):
                assert ended.code == 0, ended.errors
            known[ranks] = Whole(outcome(run), int((folder / "opened").read_text()), space_needed(run, 0))
        return known[ranks]

    return get


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64m") as folder:
        yield folder


def ends_as(whole: Whole, run: RunDir, recipe: Path, ranks: int | None, logs: Path, about: object) -> None:
    """The same command runs to its end, which is the uninterrupted run's."""
    for ended in started(ranks, logs, train, recipe, "--run-dir", run.path):
        assert ended.code == 0, f"{about}: {ended.errors}"
    found = outcome(run)
    for name, value in whole.outcome.items():
        assert found[name] == value, f"{about}: another {name}"


# --- full ---


def filled_run(recipe: Path, folder: Path, number: int, ranks: int | None, whole: Whole) -> int:
    """Fill the disk of a run, free it, and run it to its end; return the exit code of the first start."""
    chance = random.Random(number)
    opened = chance.randint(1, whole.opened)
    pages = chance.choice([0, 1, 2, 3, 4, chance.randint(5, whole.save_bytes // PAGE)])
    about = f"number {number}: file {opened}, {pages} pages"
    with small_disk(folder / f"disk-{number}", "64m") as disk:
        run = RunDir(disk / "run")
        # A batch system may write the job's output to the same disk, which then has no space for the error.
        logs = disk / "logs" if number % 4 == 3 else folder / f"logs-{number}"
        ended = started(
            ranks, logs, train_until, opened, fill, (disk, pages * PAGE), recipe, "--run-dir", run.path
        )  # fmt: skip
        codes = {one.code for one in ended}
        assert codes in ({0}, {150}), f"{about}: {ended}"
        assert all("Traceback" not in one.errors + one.output for one in ended), f"{about}: {ended}"
        if codes == {150} and logs.parent != disk:
            sentence = the_sentence(ended[0], str(run.path), "Free space on that disk")
            assert re.search(r"[0-9.]+ [KM]iB left", sentence), about
        state = run.read_state()
        assert state.get("state") != "running", about
        assert state.get("exit_code", 150) in codes, about
        for part, complete in (
            (run.checkpoints, run.complete_checkpoints()),
            (run.snapshots, run.complete_snapshots()),
        ):
            assert {path.name for path in part.glob("*")} == {f"step-{saved.step}" for saved in complete}, about
            assert [verify(saved, run.run_id) for saved in complete] == [None] * len(complete), about
        if (disk / "filler").exists():
            make_room(disk)
        ends_as(whole, run, recipe, ranks, folder / f"logs-{number}-again", about)
    return codes.pop()


@pytest.mark.parametrize(
    ("ranks", "numbers", "failures"),
    [
        pytest.param(None, range(5), 3, id="one rank"),
        pytest.param(2, range(100, 102), 2, id="two ranks", marks=pytest.mark.exhaustive),
        pytest.param(None, range(5, 30), 17, id="one rank, more", marks=pytest.mark.exhaustive),
        pytest.param(2, range(102, 110), 5, id="two ranks, more", marks=pytest.mark.exhaustive),
    ],
)
def test_a_disk_that_fills_at_any_moment_is_150_and_the_resumed_run_ends_as_an_uninterrupted_one(
    recipe: Path, tmp_path: Path, whole: Callable[..., Whole], ranks: int | None, numbers: range, failures: int
) -> None:
    """At least `failures` of the runs had too little space."""
    codes = [filled_run(recipe, tmp_path, number, ranks, whole(ranks)) for number in numbers]
    assert codes.count(150) >= failures


def train_with_full_file(name: str, *args: Any) -> None:
    """`mini-r1 train RECIPE --run-dir RUN`; files of that name in RUN accept no byte, on a disk with free space."""
    from mini_r1.training import run_logs

    entry = run_logs._entry
    # An untrained model is never right, and the file of right answers would stay empty.
    run_logs._entry = lambda record: record["rewards"].update(equation=1.0) or entry(record)  # type: ignore[func-returns-value]

    def look(event: str, about: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(about[0], str) and about[0].startswith(str(args[-1])):
            path = Path(about[0])
            if re.fullmatch(name, path.name) and not path.exists():
                path.symlink_to("/dev/full")

    sys.addaudithook(look)
    train(*args)


@pytest.mark.parametrize(
    "name",
    [
        r"metrics\.jsonl", r"completions\.jsonl", r"completion_samples\.txt", r"success_completion_samples\.txt",
        r"events\.out\.tfevents.*",
    ],
)  # fmt: skip
def test_each_file_that_cannot_be_appended_to_is_named(tmp_path: Path, recipe: Path, name: str) -> None:
    run = RunDir(tmp_path / "run")
    (ended,) = started(None, tmp_path / "logs", train_with_full_file, name, recipe, "--run-dir", run.path)
    sentence = the_sentence(ended, "No space left on device")
    assert re.search(rf"cannot write {re.escape(str(run.path))}/\S*{name}: ", sentence)
    state = run.read_state()
    if state or "events" not in name:  # those are begun before the attempt is
        assert (state["state"], state["exit_code"]) == ("failed", 150)
        assert f"error: {state['reason']}" == sentence


def test_a_log_on_a_full_disk_loses_lines_and_the_run_continues(
    tmp_path: Path, recipe: Path, whole: Callable[..., Whole]
) -> None:
    run = RunDir(tmp_path / "run")
    (ended,) = started(None, tmp_path / "logs", train_with_full_file, r"rank-0\.log", recipe, "--run-dir", run.path)
    assert ended.code == 0, ended.errors
    assert "Logging error" not in ended.errors
    assert outcome(run)["metrics"] == whole(None).outcome["metrics"]


# --- read-only, forbidden, renamed, removed ---


def read_only(run: Path) -> None:
    """Mount both folders of saves read-only, over themselves: a filesystem with open files can't become so."""
    for folder in (run / "checkpoints", run / "snapshots"):
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def forbidden(run: Path) -> None:
    """Revoke this process's access to the run directory."""
    root = os.geteuid() == 0
    os.chmod(run.parent, 0o700 if root else 0o000)
    if root:  # from here on with another user's access to files
        ctypes.CDLL(None).setfsuid(OTHER_USER)
        deepspeed = sys.modules.get("deepspeed.ops.transformer.inference.triton.matmul_ext")
        if deepspeed is not None:  # at exit it writes to the home of the first user
            atexit.unregister(deepspeed.matmul_ext_update_autotune_table)


def renamed(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def removed(run: Path) -> None:
    shutil.rmtree(run)


def undo(action: Action, run: Path) -> None:
    """Restore the run directory."""
    if action is read_only:
        for folder in (run / "checkpoints", run / "snapshots"):
            subprocess.run(["umount", folder], check=True)
    elif action is forbidden:
        os.chmod(run.parent, 0o755)
    elif action is renamed:
        if run.exists():  # created again between two checks
            shutil.rmtree(run)
        run.with_name("elsewhere").rename(run)


EXPECTED = {
    read_only: "Read-only file system",
    forbidden: "the right to read and write",
    renamed: "renamed",
    removed: "removed",
}


@pytest.mark.parametrize(
    ("action", "numbers"),
    [
        *((action, range(1)) for action in EXPECTED),
        *(pytest.param(action, range(1, 6), marks=pytest.mark.exhaustive) for action in EXPECTED),
    ],
    ids=lambda value: value.__name__ if callable(value) else f"{len(value)} moments",
)
def test_a_run_directory_that_becomes_unwritable_is_150(
    recipe: Path, disk: Path, whole: Callable[..., Whole], action: Action, numbers: range
) -> None:
    others = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if (
        action is forbidden
        and os.geteuid() == 0
        and all(int(first) + int(size) <= OTHER_USER for first, _, size in others)
    ):
        pytest.skip("this user namespace has no other user, whose access could be revoked")
    for number in numbers:
        folder = disk / str(number)
        folder.mkdir()
        run, expected = RunDir(folder / "run"), whole(None)
        opened = random.Random(number).randint(expected.opened // 4, expected.opened * 3 // 4)
        about = f"number {number}: file {opened}"
        (ended,) = started(
            None, folder / "logs", train_until, opened, action, (run.path,), recipe, "--run-dir", run.path
        )  # fmt: skip
        assert ended.code == 150, f"{about}: {ended.errors}"
        the_sentence(ended, str(run.path), EXPECTED[action])
        if action is read_only:
            assert run.read_state()["state"] == "failed", about
        undo(action, run.path)
        ends_as(expected, run, recipe, None, folder / "logs-again", about)
