"""A process next to training that sends each snapshot and the logs to the hub: `push_to_hub: true`.

    python -m mini_r1.hub.push RUN

Rank 0 writes `saved` to its standard input for a new snapshot, and `end` for the last round, after which it exits; it
also exits with its parent. It is a process, not a thread, because hashing and sending gigabytes would delay the
trainer. A failed round is retried after a pause and at the next save. `hub.json` in the run directory has the results.
"""

import os
import select
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Final

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub.hub_access import MAIN
from mini_r1.hub.publish import Publication, default_name
from mini_r1.hub.upload import Repository, require_token
from mini_r1.machine.lifeline import Lifeline
from mini_r1.machine.provenance import utc_now
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

SAVED: Final = "saved"
END: Final = "end"
PUSH_RECORD: Final = "hub.json"
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 600.0
"""Seconds after a failed round, doubled each time; `upload.Repository` has retried for a minute by then."""
NICENESS: Final = 10
"""Added to the process's niceness: the trainer comes first."""


class Pusher:
    """Sends the new snapshots of one run, which has its recipe.yaml."""

    def __init__(self, run: RunDir, token: str) -> None:
        self._run = run
        self._token = token
        self._recipe = load_recipe(run.recipe_file)
        self._repository = Repository(default_name(run, self._recipe), token, log_line)
        self._pushed: set[int] = set()
        self.only_at_end = self._recipe.hub_strategy == "end"

    def push(self, *, last: bool) -> bool:
        """Send what is new; return False if a retry may help. An error is recorded, not raised."""
        try:
            error = self._push_snapshots(last=last)
        except KitError as raised:
            error = raised
        except Exception as raised:
            self._record(type(raised).__name__)
            raise
        self._record(error.message if error else None)
        if error:
            log_line(f"not pushed: {error.message}")
        return error is None or error.exit_code != ExitCode.RETRY

    def _push_snapshots(self, *, last: bool) -> KitError | None:
        """Return the first error that a retry can't fix: a damaged snapshot doesn't hold up the next one."""
        repository, publication = self._repository, self._publication
        snapshots = {saved.step: saved for saved in reversed(self._run.complete_snapshots())}
        first_error: KitError | None = None
        for step, saved in snapshots.items():
            try:
                if step not in self._pushed:
                    repository.send(publication.branch(repository.name, saved, f"step-{step}"))
                if step == max(snapshots):
                    why = "" if last else " of a run that is still training"
                    repository.send(publication.branch(repository.name, saved, MAIN, list(snapshots), why))
                if step not in self._pushed:
                    self._pushed.add(step)
                    self._record(None)  # now, because the next one may take long
            except KitError as error:
                if error.exit_code == ExitCode.RETRY:
                    raise
                first_error = first_error or error
        return first_error

    @cached_property
    def _publication(self) -> Publication:
        """Opens the repository, once that succeeds."""
        self._repository.open(self._run.run_id, private=self._recipe.hub_private_repo)
        log_line(f"pushing to {self._repository.address}")
        return Publication(self._run, self._token)

    def _record(self, error: str | None) -> None:
        values = {
            "repo": self._repository.name,
            "address": self._repository.address,
            "pushed": sorted(self._pushed),
            "error": error,
            "time": utc_now(),
        }
        try:
            write_json(self._run.path / PUSH_RECORD, values, sync=False)
        except OSError:
            log_line(f"{PUSH_RECORD} could not be written")


def log_line(line: str) -> None:
    """Write a line to the log."""
    print(f"{time.strftime('%H:%M:%S')} {printable(line)}", file=sys.stderr, flush=True)


def run_rounds(pusher: Pusher) -> None:
    """Push at each order on standard input, and after a pause what failed, until the last round or the input's end."""
    pause, pending, last = FIRST_PAUSE_S, False, False
    while not last or pending:
        ready = select.select([0], [], [], pause if pending else None)[0]
        orders = os.read(0, 4096).decode().split() if ready else []
        if ready and not orders:
            return
        last = last or END in orders
        if last or not pusher.only_at_end:
            pending = not pusher.push(last=last)
            pause = FIRST_PAUSE_S if orders else min(2 * pause, LONGEST_PAUSE_S)


def main() -> None:
    """Push until the end of training."""
    if not Lifeline(os.getppid())():
        return
    os.nice(NICENESS)
    try:
        run_rounds(Pusher(RunDir(Path(sys.argv[1])), require_token()))
    except KitError as error:
        log_line(error.message)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
