"""The run directory: its layout, its lock, its state, and the checkpoints that are kept. No torch.

    recipe.yaml            the resolved recipe
    recipe_files/          copies of the files that it names: a prompt, code of rewards
    run.json               versions, devices, seeds, resolved revisions, the command        (rank 0, once an attempt)
    state.json             state, step, phase, heartbeat (its start), process, exit code, reason; replaced atomically
                           (overwritten in place when a full disk ends the run)
    attempts/N/            one start of the program: metrics.jsonl, completions.jsonl, rank-R.log
    tensorboard/           TensorBoard events
    held_out.jsonl         the problems this run must not train on: evaluation uses them
    completion_samples/    the original's two text files: completion_samples.txt, success_completion_samples.txt
    checkpoints/step-N/    full, resumable state; the newest KEEP_CHECKPOINTS; skipped-step-N could not be resumed from
    snapshots/step-N/      16-bit weights and tokenizer, one for each save
    evaluation/*.json      held-out results; the answers to step-N.json are in step-N-completions.jsonl
    report.html            made by `mini-r1 report`
    hub.json               with push_to_hub: the repository, what is there, the last error
    slurm/                 output and notes of the batch scripts
    jobs/*.jsonl           attempts of a job of Slurm or Kubernetes, one file per job and node, for its limits

A checkpoint or snapshot counts only once it has its manifest, which is written last. `reader` reads what a run logged.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_r1.disk_errors import FULL, WRONG_PATH, disk_error
from mini_r1.errors import Cause, ExitCode, KitError
from mini_r1.machine.schedulers import Patience
from mini_r1.recipe.named_files import FOLDER
from mini_r1.run.files import SCRATCH, format_json, lock_file, make_folder, read_object, write_json
from mini_r1.run.manifest import Saved, complete, discard, tidy
from mini_r1.values import mapping

HELD_BY = "MINI_R1_RUN_HELD_BY"
"""The Slurm job that still trains here, after the batch script has waited for it: not every filesystem has locks."""
STARTUP_FILES = frozenset({".lock", "attempts", "jobs", "report.html", "slurm", "state.json", FOLDER})
"""Files that may exist before a run's recipe: of a start, also one that failed, of a report, of a batch script."""
RUNS = Path("runs")  # folder of runs, unless output_dir or --run-dir names another
KEEP_CHECKPOINTS = 2  # full checkpoints kept: the newest, and one to fall back on if the newest is damaged


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
        self.lock_path = path / ".lock"

    def is_run(self) -> bool:
        """Return whether a run has reached its first attempt here."""
        return self.recipe_file.is_file()

    def is_starting(self) -> bool:
        """Return whether a start has begun here and not reached its first attempt, which begins with recipe.yaml."""
        # attempts/0 has the stacks of a start that hung before its first attempt.
        begun = any(number > 0 for number in self.attempt_numbers())
        return self.state_file.is_file() and not self.recipe_file.exists() and not begun

    @contextlib.contextmanager
    def claim(self, patience: Patience | None = None) -> Iterator[None]:
        """Hold the directory for one writer: made if it is missing, removed if nothing was written to it.

        A KitError says why it can't: no writable directory, no run, or another process is writing it, which a job
        waits for first.
        """
        patience = patience or Patience(os.environ)
        try:
            make_folder(self.path)
            if self.holds_other_files():
                raise KitError(f"{self.path} is not empty and holds no run: choose another --run-dir")
            handle = self.lock_path.open("w")
        except OSError as error:
            refused = f"cannot use {self.path} as run directory: {error.strerror}"
            if error.errno in WRONG_PATH:
                raise KitError(refused) from error
            full = disk_error(error, self.path) if error.errno in FULL else None
            raise full or KitError(  # another node, or this one after a repair, may be able to write there
                f"{refused}: give this user (uid {os.getuid()}) the right to write there, mount the volume, or choose "
                "another --run-dir",
                ExitCode.RETRY,
            ) from error
        with handle:
            holder = patience.environment.get(HELD_BY)
            held = (
                f"{f'job {holder}' if holder else 'another process'} is training in {self.path}: wait for it, stop it, "
                "or choose another --run-dir"
            )
            if holder:
                raise KitError(held, Cause.RUN_HELD.exit_code)
            patience.wait_until(lambda: lock_file(handle), held, Cause.RUN_HELD)
            tidy(self.checkpoints)
            tidy(self.snapshots)
            for path in self.path.glob(SCRATCH):
                path.unlink()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # a volume is mounted there, or the directory is gone
                    if [path.name for path in self.path.iterdir()] == [self.lock_path.name]:
                        self.lock_path.unlink()
                        self.path.rmdir()

    def holds_other_files(self) -> bool:
        """Return whether the directory has files, and they are not those of a run or of its start."""
        # In one pass: another node may make a scratch file, and remove it, between two looks.
        return not self.is_run() and any(
            entry.name not in STARTUP_FILES and not entry.match(SCRATCH) for entry in self.path.iterdir()
        )

    def attempt_numbers(self) -> list[int]:
        """Return the numbers of the attempts, in ascending order."""
        names = (path.name for path in self.attempts.glob("*"))
        return sorted(int(name) for name in names if name.isdecimal() and len(name) < 7)

    def start_attempt(self) -> Path:
        """Make the directory of the next attempt; an earlier one is never written again."""
        attempt = self.attempts / str(1 + max(self.attempt_numbers(), default=0))
        make_folder(attempt)
        return attempt

    # --- run.json and state.json ---

    def read_record(self) -> dict[str, Any]:
        """Return run.json, or {} if it can't be read."""
        return read_object(self.run_file)

    @property
    def run_id(self) -> str:
        """The run's id, which its manifests have; empty before its first attempt."""
        return str(self.read_record().get("run_id", ""))

    def require_id(self) -> str:
        """Return `run_id` of a run that has begun; FileNotFoundError if run.json was removed."""
        if not self.run_id:  # saving would make the directory again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.run_file))
        return self.run_id

    def model_commit(self) -> str | None:
        """Return the hub's commit of the model that the newest attempt resolved; None if it isn't from the hub."""
        attempts = self.read_record().get("attempts")
        newest = mapping(attempts[-1]) if isinstance(attempts, list) and attempts else {}
        commit = mapping(newest.get("model")).get("revision")
        return commit if isinstance(commit, str) else None

    def read_state(self) -> dict[str, Any]:
        """Return state.json, or {} if it can't be read."""
        return read_object(self.state_file)

    def write_state(self, state: str, **fields: Any) -> None:
        """Replace state.json; `state` is one of running, interrupted, finished, failed."""
        # A heartbeat is written several times a step and is worth nothing after a power cut: don't wait for the disk.
        values = {"state": state, **fields, "heartbeat": time.time()}
        write_json(self.state_file, values, sync=state != "running")

    def write_last_state(self, state: str, /, **fields: Any) -> bool:
        """Replace state.json after a failure, by an earlier one if `fields` are that; return whether it was possible.

        A full disk has no space for a second file: there the old one is overwritten. On a read-only disk, and if the
        directory is gone, nothing is written and nothing is raised.
        """
        values = {"state": state, "heartbeat": time.time(), **fields}
        with contextlib.suppress(OSError):
            write_json(self.state_file, values, sync=False)
            return True
        with contextlib.suppress(OSError), self.state_file.open("r+b", buffering=0) as handle:
            handle.write(format_json(values).encode())
            handle.truncate()
            return True
        return False

    # --- checkpoints and snapshots ---

    def complete_checkpoints(self) -> list[Saved]:
        """Return the complete checkpoints, newest first."""
        return complete(self.checkpoints)

    def complete_snapshots(self) -> list[Saved]:
        """Return the complete snapshots, newest first."""
        return complete(self.snapshots)

    def require_snapshots(self) -> list[Saved]:
        """Return the complete snapshots, newest first; a KitError if there is none."""
        found = self.complete_snapshots()
        if not found:
            raise KitError(
                f"{self.path} has no complete snapshot yet: wait for the first save (save_steps of the recipe), or "
                "stop the run with SIGTERM, which saves one"
            )
        return found

    def prune_checkpoints(self) -> None:
        """Delete all but the newest KEEP_CHECKPOINTS; call it only after a new one is complete."""
        for saved in self.complete_checkpoints()[KEEP_CHECKPOINTS:]:
            discard(saved.path)

    def set_aside(self, checkpoint: Saved) -> Path:
        """Rename a checkpoint that can't be resumed from, and return its new path.

        Under its own name it would stay the newest, and a good one would be pruned in its place.
        """
        aside = checkpoint.path.with_name(f"skipped-step-{checkpoint.step}")
        discard(aside)
        return checkpoint.path.rename(aside)


def find_run(name: str | Path) -> Path:
    """Return the path of a run, from its path or, where that does not exist, from its name in runs/."""
    path = Path(name)
    named = RUNS / path
    # os.path.exists: False, and no error, for a name that is too long.
    return named if ".." not in path.parts and not os.path.exists(path) and os.path.exists(named) else path


def open_run(path: Path, *, begun: bool = True) -> RunDir:
    """Return an existing run directory, with `begun` one of a run that has a recipe; a KitError if it holds no run."""
    run = RunDir(path)
    if run.is_run() or (not begun and (run.state_file.is_file() or run.attempts.is_dir())):
        return run
    lacks = "no recipe.yaml" if begun else "no recipe.yaml, state.json or attempts"
    raise KitError(f"{path} holds no run ({lacks} in it): `mini-r1 runs` lists those in {RUNS}/")
