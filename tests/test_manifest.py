"""Complete or not there: manifests, and a SIGKILL at every line of what writes and deletes them.

Every fifth line is quick; every line is exhaustive.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from mini_r1.run import manifest
from mini_r1.run.manifest import MANIFEST, complete, digests, discard, seal, tidy, verify
from mini_r1.run.run_dir import RunDir

from tests.power_cut import recorded_syncs

RUN_ID = "0123456789abcdef"


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def written(parent: Path, step: int, text: str = "weights") -> Path:
    """A directory as a trainer leaves it: files, and a folder with a folder in it."""
    scratch = parent / f"checkpoint-{step}"
    (scratch / "global_step" / "deep").mkdir(parents=True)
    (scratch / "model.safetensors").write_text(text)
    (scratch / "global_step" / "deep" / "shard.pt").write_text(text * 2)
    return scratch


def save(parent: Path, step: int, text: str = "weights", **facts: Any) -> Path:
    seal(written(parent, step, text), parent / f"step-{step}", run_id=RUN_ID, **facts)
    return parent / f"step-{step}"


def content(path: Path) -> str:
    """Return the content of a directory by `save`; it must be whole."""
    text = (path / "model.safetensors").read_text()
    assert (path / "global_step" / "deep" / "shard.pt").read_text() == text * 2
    return text


def found(parent: Path) -> dict[int, str]:
    """What a reader finds: each complete directory's content by its step."""
    steps = {}
    for saved in complete(parent):
        assert verify(saved, RUN_ID) is None
        steps[saved.step] = content(saved.path)
    return steps


# --- the manifest ---


def test_the_manifest_names_every_file_and_keeps_the_facts(parent: Path) -> None:
    path = save(parent, 6, "w", world_size=3, zero_stage=2)
    said = json.loads((path / MANIFEST).read_text())
    assert sorted(said["files"]) == ["global_step/deep/shard.pt", "model.safetensors"]
    assert said["files"]["global_step/deep/shard.pt"] == {
        "size": 2,
        "sha256": "b84ff8057ee3a7f87deac4ae29ac59292f02e6c28f987031648011018384d888",  # printf ww | sha256sum
    }
    (saved,) = complete(parent)
    assert saved.facts == {"run_id": RUN_ID, "world_size": 3, "zero_stage": 2}
    assert verify(saved, RUN_ID) is None


def test_the_manifest_can_be_read_by_people(parent: Path) -> None:
    text = (save(parent, 6) / MANIFEST).read_text()
    assert text.startswith('{\n  "run_id": "0123456789abcdef",\n  "files": {\n    "global_step/deep/shard.pt": {\n')
    assert text.endswith("}\n")


def test_a_save_is_whole_after_a_power_cut(parent: Path, tmp_path: Path) -> None:
    """Each folder in it was synced, and the folders around it."""
    with recorded_syncs(tmp_path) as recording:
        save(parent, 6)
    left = tmp_path.with_name(f"{tmp_path.name}-left")
    recording.cut(len(recording.synced), left)
    recording.close()
    assert found(left / parent.name) == {6: "weights"}


def test_digests_of_several_ranks_make_one_manifest(parent: Path) -> None:
    scratch = written(parent, 6)
    one, two = digests(scratch, ["model.safetensors"]), digests(scratch, ["global_step/deep/shard.pt"])
    seal(scratch, parent / "step-6", run_id=RUN_ID, files={**one, **two})
    assert found(parent) == {6: "weights"}


@pytest.mark.parametrize("named", [["model.safetensors"], ["model.safetensors", "global_step/deep/shard.pt", "other"]])
def test_a_save_with_a_part_missing_is_never_sealed(parent: Path, named: list[str]) -> None:
    """A rank's file without a digest, and a digest of a missing file."""
    scratch = written(parent, 6)
    with pytest.raises(OSError, match=r"the parts of this save do not fit together: .*/(shard\.pt|other)"):
        seal(scratch, parent / "step-6", run_id=RUN_ID, files={name: {"size": 1, "sha256": ""} for name in named})
    assert not (parent / "step-6").exists()


def test_only_sealed_directories_count_and_the_newest_is_first(parent: Path) -> None:
    for step in (9, 100, 10):
        save(parent, step)
    written(parent, 200).rename(parent / "step-200")
    save(parent, 300)
    (parent / "step-300" / MANIFEST).write_text('{"files": {"model.saf')
    save(parent, 400).rename(parent / "step-best")
    assert [saved.step for saved in complete(parent)] == [100, 10, 9]


SHARD = {"size": 14, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "said",
    [
        "", "{", "[]", "null", b"\xff\xfe",
        {}, {"files": []}, {"files": None}, {"files": "shard.pt"},
        {"files": {"a": SHARD, "b": {"size": 1}}}, {"files": {"a": SHARD, "b": {"sha256": "0"}}},
        {"files": {"a": SHARD, "b": {"size": "1", "sha256": "0"}}},
        {"files": {"a": {"size": 1.5, "sha256": "0"}, "b": SHARD}},
        {"files": {"a": SHARD, "b": {"size": 1, "sha256": None}}}, {"files": {"a": "b"}}, {"files": {"a": None}},
    ],
    ids=repr,
)  # fmt: skip
def test_a_manifest_that_cannot_be_read_makes_nothing_complete(parent: Path, said: object) -> None:
    path = save(parent, 6)
    (saved,) = complete(parent)
    raw = said if isinstance(said, bytes) else (said if isinstance(said, str) else json.dumps(said)).encode()
    (path / MANIFEST).write_bytes(raw)
    assert complete(parent) == []
    assert verify(saved, RUN_ID) == "its manifest cannot be read"


def test_a_step_saved_again_replaces_the_old_one(parent: Path) -> None:
    save(parent, 6, "old")
    save(parent, 6, "new")
    assert found(parent) == {6: "new"}
    assert [path.name for path in parent.iterdir()] == ["step-6"]


# --- what is wrong with a directory ---


def a_file(path: Path) -> None:
    (path / "extra.pt").write_text("a pickle that someone put there")


def a_link(path: Path) -> None:
    target = path.parent / "elsewhere"
    (path / "model.safetensors").rename(target)
    (path / "model.safetensors").symlink_to(target)


def a_linked_folder(path: Path) -> None:
    shutil.move(path / "global_step" / "deep", path.parent / "deep")
    (path / "global_step" / "deep").symlink_to(path.parent / "deep", target_is_directory=True)


def a_pipe(path: Path) -> None:
    os.mkfifo(path / "extra.pt")


def no_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
    (lambda path: (path / "model.safetensors").write_text("short"), "model.safetensors has 5 bytes, not 7"),
    (lambda path: (path / "model.safetensors").write_text("WEIGHTS"), "model.safetensors does not have the hash"),
    (a_file, "extra.pt is not in its manifest"),
    (a_pipe, "extra.pt is not in its manifest"),
    (a_link, "model.safetensors is a link"),
    (a_linked_folder, "global_step/deep is a link"),
    (no_manifest, "its manifest cannot be read"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
def test_damage_is_found_and_named(parent: Path, damage: Callable[[Path], object], said: str) -> None:
    save(parent, 6)
    (saved,) = complete(parent)
    damage(saved.path)
    error = verify(saved, RUN_ID)
    assert error is not None
    assert said in error


def test_a_file_that_cannot_be_read_is_reported(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(parent, 6)

    def bad_block(handle: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manifest, "_digest", bad_block)
    error = verify(complete(parent)[0], RUN_ID)
    assert error == "global_step/deep/shard.pt cannot be read: Input/output error"


def test_a_directory_of_another_run_is_refused(parent: Path) -> None:
    save(parent, 6)
    assert verify(complete(parent)[0], "f" * 16) == "it belongs to another run"
    assert verify(complete(parent)[0], "") == "it belongs to another run"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../model.safetensors", "./model.safetensors", ""])
def test_a_manifest_that_names_what_is_not_inside(parent: Path, name: str) -> None:
    path = save(parent, 6)
    said = json.loads((path / MANIFEST).read_text())
    said["files"][name] = said["files"]["model.safetensors"]
    (path / MANIFEST).write_text(json.dumps(said))
    error = verify(complete(parent)[0], RUN_ID)
    assert error == f"its manifest names {name!r}, which is no path inside"


# --- killed ---


def killed_at(line: int, function: Callable[[], object]) -> bool:
    """Call a function in a forked process that gets a SIGKILL before the `line`-th line it runs; False: it ended.

    Lines of the manifest's code and of `shutil`'s deletion count.
    """
    child = os.fork()
    if child == 0:
        left = line
        os.fsync = lambda descriptor: None  # waits for a disk, which a SIGKILL does not stop

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in (manifest.__file__, shutil.__file__):
                return None
            if event == "line":
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return trace

        sys.settrace(trace)
        try:
            function()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def killed_anywhere(
    tmp_path: Path, stride: int, prepare: Callable[[Path], None], function: Callable[[Path], object]
) -> list[Path]:
    """A directory prepared anew and killed in the function, at every `stride`-th line; the last one was left to end."""
    prepare(tmp_path / "prepared")
    folders: list[Path] = []
    while True:
        folder = tmp_path / str(len(folders)) / "checkpoints"
        shutil.copytree(tmp_path / "prepared", folder)
        folders.append(folder)
        if not killed_at((len(folders) - 1) * stride, lambda folder=folder: function(folder)):  # type: ignore[misc]
            assert len(folders) > 20 // stride, "hardly a line was found to kill it at"
            return folders


strides = pytest.mark.parametrize(
    "stride", [pytest.param(5, id="every 5th line"), pytest.param(1, id="every line", marks=pytest.mark.exhaustive)]
)


@strides
def test_a_save_killed_at_any_line_is_there_whole_or_not_at_all(tmp_path: Path, stride: int) -> None:
    def prepare(folder: Path) -> None:
        save(folder, 3)
        written(folder, 6)

    folders = killed_anywhere(
        tmp_path, stride, prepare, lambda f: seal(f / "checkpoint-6", f / "step-6", run_id=RUN_ID, world_size=1)
    )
    seen = []
    for folder in folders:
        before = found(folder)
        tidy(folder)
        assert found(folder) == before
        assert {path.name for path in folder.iterdir()} == {f"step-{step}" for step in before}
        seen.append(before)
    assert len(seen) > 50 // stride
    assert seen[0] == {3: "weights"}
    assert seen[-1] == {3: "weights", 6: "weights"}
    assert [len(each) for each in seen] == sorted(len(each) for each in seen)


@strides
def test_a_save_that_replaces_one_leaves_the_old_or_the_new_at_any_line(tmp_path: Path, stride: int) -> None:
    def prepare(folder: Path) -> None:
        save(folder, 6, "old")
        written(folder, 6, "new")

    folders = killed_anywhere(
        tmp_path, stride, prepare, lambda f: seal(f / "checkpoint-6", f / "step-6", run_id=RUN_ID)
    )
    seen = []
    for folder in folders:
        before = found(folder)
        tidy(folder)
        assert found(folder) == before
        assert [path.name for path in folder.iterdir()] == ["step-6"]
        seen.append(before[6])
    assert (seen[0], seen[-1]) == ("old", "new")
    assert seen == sorted(seen, reverse=True)  # once new, never old again


@strides
def test_tidying_up_may_be_killed_too(tmp_path: Path, stride: int) -> None:
    def prepare(folder: Path) -> None:
        save(folder, 3).rename(folder / ".old-step-3")  # killed between the two moves of a replacement
        save(folder, 6, "old").rename(folder / ".old-step-6")  # killed after both
        save(folder, 6, "new")
        written(folder, 9)
        save(folder, 2).rename(folder / ".gone-step-2")

    for folder in killed_anywhere(tmp_path, stride, prepare, tidy):
        assert found(folder) == {3: "weights", 6: "new"}
        tidy(folder)
        assert found(folder) == {3: "weights", 6: "new"}
        assert sorted(path.name for path in folder.iterdir()) == ["step-3", "step-6"]


@strides
def test_pruning_killed_at_any_line_leaves_nothing_that_looks_complete(tmp_path: Path, stride: int) -> None:
    def prepare(folder: Path) -> None:
        for step in (4, 6, 8):
            save(folder, step)

    for folder in killed_anywhere(tmp_path, stride, prepare, lambda f: RunDir(f.parent).prune_checkpoints()):
        assert {8, 6} <= found(folder).keys()
        tidy(folder)
        assert {path.name for path in folder.iterdir()} == {f"step-{step}" for step in found(folder)}


def test_tidying_leaves_what_is_not_ours(parent: Path) -> None:
    for name in ("step-6", "skipped-step-3", "notes"):
        (parent / name).mkdir(parents=True)
    (parent / "README").write_text("mine")
    tidy(parent)
    tidy(parent / "none")
    discard(parent / "none")
    assert sorted(path.name for path in parent.iterdir()) == ["README", "notes", "skipped-step-3", "step-6"]
