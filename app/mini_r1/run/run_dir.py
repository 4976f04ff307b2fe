"""The run directory: what is in it, who writes it, and how a reader tells a whole file from a half-written one.

    recipe.yaml            the resolved recipe
    run.json               versions, devices, seeds, resolved revisions, the command        (rank 0, once an attempt)
    state.json             state, step, phase, heartbeat (its start), process, exit code, reason; replaced atomically
                           (overwritten in place when a full disk ends the run)
    attempts/N/            one start of the program: metrics.jsonl, completions.jsonl, rank-R.log
    tensorboard/           TensorBoard events
    held_out.jsonl         the problems this run must not train on: evaluation uses them
    completion_samples/    the original's two text files: completion_samples.txt, success_completion_samples.txt
    checkpoints/step-N/    full, resumable state; the newest two; skipped-step-N is one that could not be resumed from
    snapshots/step-N/      16-bit weights and tokenizer, one for each save
    evaluation/*.json      held-out results; step-N-completions.jsonl beside step-N.json: answers to read
    report.html            made by `mini-r1 report`
    hub.json               with push_to_hub: the repository, what is there, what went wrong last
    slurm/                 what the batch scripts print and note of each attempt

A checkpoint or snapshot counts only when its manifest is there, which is written last. No torch here: cluster scripts
and reports read runs too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mini_r1.disk_errors import FULL, disk_error, named
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.manifest import Saved, complete, discard, sync_path, tidy
from mini_r1.values import mapping

OURS = frozenset({".lock", "attempts", "report.html", "slurm", "state.json"})
"""What may be there before a run's recipe: written by a start, left by one that came to nothing, a report of it, or a
batch script's own."""
SCRATCH = ".*.tmp"
"""Files that `write_text` had not given their name yet when it was killed."""
KEEP_CHECKPOINTS = 2
"""Full checkpoints kept: the newest, and one to fall back on when the newest turns out to be damaged."""

MAX_OBJECT_BYTES = 16 << 20
"""Of a JSON file; an evaluation has some ten thousand, run.json a thousand for each attempt."""
_HELD_OUT = re.compile(r"step-(\d{1,15})(?:-limit-(\d{1,15}))?(?:\.json|-completions\.jsonl)")
"""Of the run's held-out part or some of it; those of another file of problems have its hash in their names."""


class RunDir:
    """Paths and atomic operations of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.run_file = path / "run.json"
        self.state_file = path / "state.json"
        self.attempts = path / "attempts"
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.tensorboard = path / "tensorboard"
        self.completion_samples = path / "completion_samples"
        self.evaluation = path / "evaluation"
        self.held_out_file = path / "held_out.jsonl"
        self._lock = path / ".lock"

    def is_run(self) -> bool:
        """Whether a run has been started here."""
        return self.recipe_file.is_file()

    def is_starting(self) -> bool:
        """Whether a start has begun here and has not come to its first attempt, whose first file is recipe.yaml."""
        begun = any(path.name != "0" for path in self.attempts.glob("*"))  # 0 has the stacks of one that hung before
        return self.state_file.is_file() and not self.recipe_file.exists() and not begun

    def has_steps(self) -> bool:
        """Whether a start would go on from a checkpoint: then recipe, data and model are settled."""
        return bool(self.complete_checkpoints())

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for one writer; made if it is not there, and gone again if nothing came of it.

        Raises:
            KitError: the path is a file, is not writable, holds something that is not a run, or another process of
                this machine is writing it.
        """
        try:
            _make_folder(self.path)
            ours = {*OURS, *(p.name for p in self.path.glob(SCRATCH))}
            if not self.is_run() and any(p.name not in ours for p in self.path.iterdir()):
                raise KitError(f"{self.path} is not empty and holds no run: choose another --run-dir")
            handle = self._lock.open("w")
        except (FileExistsError, NotADirectoryError) as error:
            raise KitError(f"cannot use {self.path} as run directory: {error.strerror}") from error
        except OSError as error:  # another node, or this one in order, may write there
            full = disk_error(error, self.path) if error.errno in FULL else None
            raise full or KitError(
                f"cannot use {self.path} as run directory: {error.strerror}: give this user (uid {os.getuid()}) the "
                "right to write there, mount the volume, or choose another --run-dir",
                ExitCode.RETRY,
            ) from error
        with handle:
            if not locked(handle):
                raise KitError(
                    f"another process is training in {self.path}: wait for it, stop it, or choose another --run-dir"
                )
            tidy(self.checkpoints)
            tidy(self.snapshots)
            for path in self.path.glob(SCRATCH):
                path.unlink()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # a volume is mounted there, or the directory is gone
                    if [p.name for p in self.path.iterdir()] == [self._lock.name]:
                        self._lock.unlink()
                        self.path.rmdir()

    def start_attempt(self) -> Path:
        """Make the directory of the next attempt; an earlier one is never written again."""
        number = 1 + max((int(p.name) for p in self.attempts.glob("*") if p.name.isdecimal()), default=0)
        attempt = self.attempts / str(number)
        _make_folder(attempt)
        return attempt

    # --- state.json ---

    def read_state(self) -> dict[str, Any]:
        """The last state written, or {} when there is none that can be read."""
        return read_object(self.state_file)

    def read_record(self) -> dict[str, Any]:
        """run.json, or {} when there is none that can be read."""
        return read_object(self.run_file)

    def model_commit(self) -> str | None:
        """The hub's commit of the model that the newest start resolved; None of a model from elsewhere."""
        attempts = self.read_record().get("attempts")
        newest = mapping(attempts[-1]) if isinstance(attempts, list) and attempts else {}
        commit = mapping(newest.get("model")).get("revision")
        return commit if isinstance(commit, str) else None

    @property
    def run_id(self) -> str:
        """What a manifest of this very run says; empty before its first attempt."""
        return str(self.read_record().get("run_id", ""))

    def require_id(self) -> str:
        """Return `run_id` of a run that has begun.

        Raises:
            FileNotFoundError: run.json is not here any more; a save would make the directory anew.
        """
        if not self.run_id:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.run_file))
        return self.run_id

    def write_state(self, state: str, **fields: Any) -> None:
        """Replace state.json; `state` is one of running, interrupted, finished, failed."""
        # A heartbeat comes several times a step and is worth nothing after a power cut: nothing waits for the disk.
        values = {"state": state, **fields, "heartbeat": time.time()}
        write_json(self.state_file, values, sync=state != "running")

    def write_last_state(self, state: str, **fields: Any) -> bool:
        """Replace state.json after a failure; return whether that was possible.

        A full disk has no room for a second file, so the old one is overwritten there. If the disk is read-only or the
        directory is gone, nothing is written and nothing is raised.
        """
        return self.restore_state({"state": state, **fields, "heartbeat": time.time()})

    def restore_state(self, values: dict[str, Any]) -> bool:
        """Do what `write_last_state` does, with values that `read_state` returned."""
        with contextlib.suppress(OSError):
            write_json(self.state_file, values, sync=False)
            return True
        with contextlib.suppress(OSError), self.state_file.open("r+b", buffering=0) as handle:
            handle.write(_json(values).encode())
            handle.truncate()
            return True
        return False

    def write_held_out(self, problems: list[dict[str, Any]]) -> None:
        """Replace held_out.jsonl."""
        write_jsonl(self.held_out_file, problems)

    # --- checkpoints and snapshots ---

    def complete_checkpoints(self) -> list[Saved]:
        """Complete checkpoints, newest first."""
        return complete(self.checkpoints)

    def complete_snapshots(self) -> list[Saved]:
        """Complete snapshots, newest first."""
        return complete(self.snapshots)

    def some_snapshots(self) -> list[Saved]:
        """The complete snapshots, newest first, for who needs one.

        Raises:
            KitError: there is none.
        """
        found = self.complete_snapshots()
        if not found:
            raise KitError(
                f"{self.path} has no complete snapshot yet: wait for the first save (save_steps of the recipe), or "
                "stop the run with SIGTERM, which saves one"
            )
        return found

    def prune_checkpoints(self) -> None:
        """Delete all but the newest KEEP_CHECKPOINTS; called only after a new one is complete."""
        for saved in self.complete_checkpoints()[KEEP_CHECKPOINTS:]:
            discard(saved.path)

    def set_aside(self, checkpoint: Saved) -> Path:
        """Rename a checkpoint that the run does not go on from; returns where it is now.

        Under its own name it would count as the newest for ever, and cost a good one its place at the next pruning.
        """
        aside = checkpoint.path.with_name(f"skipped-step-{checkpoint.step}")
        discard(aside)
        return checkpoint.path.rename(aside)

    # --- metrics and completions over all attempts ---

    def metrics(self) -> list[dict[str, Any]]:
        """One row for each step with anything to say, from the highest attempt that logged it, in order of steps.

        A step's training metrics, its evaluation and what looked wrong are written apart and stand together here.
        """
        steps: dict[int, dict[str, Any]] = {}
        for row in self._merged("metrics.jsonl"):
            steps.setdefault(row["step"], {}).update(row)
        return list(steps.values())

    def completions(self) -> Iterator[dict[str, Any]]:
        """Every completion of every step, from the highest attempt that reached the step, in order of steps."""
        return self._merged("completions.jsonl")

    def held_out_completions(self) -> Iterator[dict[str, Any]]:
        """The answers to held-out problems that evaluations kept, in order of steps; `kind` is greedy or sampled.

        Of a step that was evaluated on all problems and on some of them, those to the most problems.
        """
        best: dict[int, tuple[float, Path]] = {}
        for step, limit, path in self._of_held_out("step-*.jsonl"):
            problems = float("inf") if limit is None else limit
            best[step] = max(best.get(step, (0.0, path)), (problems, path))
        for step in sorted(best):
            yield from (row for row in read_jsonl(best[step][1]) if _has_step(row))

    def held_out_results(self) -> Iterator[tuple[int, int | None, Path]]:
        """Step, limit (None: all problems) and file of every evaluation on the run's held-out part, in no order."""
        return self._of_held_out("step-*.json")

    def _of_held_out(self, pattern: str) -> Iterator[tuple[int, int | None, Path]]:
        for path in self.evaluation.glob(pattern):
            found = _HELD_OUT.fullmatch(path.name)
            if found:
                yield int(found[1]), int(found[2]) if found[2] else None, path

    def _merged(self, name: str) -> Iterator[dict[str, Any]]:
        attempts = sorted((int(p.name) for p in self.attempts.glob("*") if p.name.isdecimal()), reverse=True)
        segments: list[tuple[Path, float]] = []
        # A later attempt goes on from a checkpoint, so all of an earlier one's rows from its first step on are void.
        # Its completions tell that step; its metrics may begin later (logging_steps) or with an evaluation before it.
        before = float("inf")
        for number in attempts:
            attempt = self.attempts / str(number)
            segments.append((attempt / name, before))
            steps = (row["step"] for row in read_jsonl(attempt / "completions.jsonl") if _has_step(row))
            before = min(before, next(steps, before))
        for path, end in reversed(segments):
            yield from (row for row in read_jsonl(path) if _has_step(row) and row["step"] < end)


# --- files ---


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a file atomically: a reader sees the old one or the new one, never half of either.

    Args:
        path: the file.
        text: its new content.
        sync: wait for the disk, so that this holds after a power cut too.

    Raises:
        OSError: with the name of the file.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path):
            scratch.unlink(missing_ok=True)  # in a run of a stranger's it may be a link to a file of yours
            with scratch.open("x", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                if sync:
                    os.fsync(handle.fileno())
            scratch.replace(path)
            if sync:
                sync_path(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()  # a full disk needs the room
        raise


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace a JSON file atomically; see `write_text`."""
    write_text(path, _json(value), sync=sync)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a JSONL file atomically; see `write_text`. What UTF-8 cannot hold arrives as JSON escapes."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def completions_of(result: Path) -> Path:
    """Where an evaluation's answers stand, for the file of its figures."""
    return result.with_name(f"{result.stem}-completions.jsonl")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one line in memory at a time; a missing file is empty.

    A line that is no object is passed over: the last one may have been cut short by a kill, and a power cut leaves
    blocks of NUL. Bytes that are not UTF-8 become U+FFFD. What is no file (a folder, a pipe, a device) is empty too: in
    a run directory that was sent, reading it might never end.
    """
    if not path.is_file():
        return
    with path.open("rb") as handle:
        for line in handle:
            try:
                row = json.loads(line.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, so that a power cut keeps them."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with contextlib.suppress(PermissionError):  # a folder may be writable and not readable
            sync_path(folder.parent)


def _has_step(row: dict[str, Any]) -> bool:
    return type(row.get("step")) is int  # a bool is an int too


def locked(handle: IO[str], *, wait: bool = False) -> bool:
    """Whether the lock on a file is ours now. It goes with the process, so a killed one leaves none behind.

    Args:
        handle: the open file.
        wait: until another process has let go of it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there one writer at a time is the user's own care
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # some network filesystems have no locks at all
    return True


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is none that can be read, or it is far too large."""
    try:
        fits = path.is_file() and path.stat().st_size <= MAX_OBJECT_BYTES  # a device has no size and no end
        value = json.loads(path.read_bytes()) if fits else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def open_run(path: Path) -> RunDir:
    """An existing run directory.

    Raises:
        KitError: there is no run at `path`.
    """
    run = RunDir(path)
    if not run.is_run():
        raise KitError(f"{path} holds no run (no recipe.yaml in it)", ExitCode.CONFIG)
    return run
