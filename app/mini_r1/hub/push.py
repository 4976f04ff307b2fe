"""A process beside training that sends each snapshot and the logs to the hub: `push_to_hub: true`.

    python -m mini_r1.hub.push RUN

The recipe says where to. A line on standard input says that there is something new: `saved`, or `end` for the last
round, after which it ends; it ends with whoever started it, too. A process and not a thread: hashing and sending
gigabytes would hold the trainer's interpreter up, and whatever becomes of it, training goes on.

What failed is tried again, after a while and at the next save. What it has done stands in the run's `hub.json`.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from mini_r1.console import printable
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub.publish import Publication, default_name, send
from mini_r1.hub.upload import MAIN, TOKENLESS, Repository, base_facts, find_token, is_offline
from mini_r1.hub.upload_errors import OFFLINE
from mini_r1.machine.lifeline import Lifeline
from mini_r1.machine.provenance import utc_now
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

SAVED: Final = "saved"
END: Final = "end"
RECORD: Final = "hub.json"
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 600.0
"""Seconds after a failed round, twice as many each time: `words.retrying` has tried for a minute by then."""
POLITE: Final = 10
"""Added to the process's niceness: the trainer's work comes first."""


class Pusher:
    """Sends what is new of one run.

    Args:
        run: the run, which has its recipe.yaml.
        token: for the hub.
    """

    def __init__(self, run: RunDir, token: str) -> None:
        self._run = run
        self._recipe = load_recipe(run.recipe_file)
        self._token = token
        self._repository: Repository | None = None
        self._publication: Publication | None = None
        self._pushed: list[int] = []
        self._fault: str | None = None  # of the last round that ended

    @property
    def waits_for_the_end(self) -> bool:
        """Whether the recipe wants it all at once."""
        return self._recipe.hub_strategy == "end"

    def round(self, *, last: bool) -> bool:
        """Send what is not there; whether all of it went. Failures are written down and not raised."""
        try:
            self._send(last=last)
        except KitError as error:
            self._end(error.message)
            say(f"not pushed: {error.message}")
            return error.exit_code != ExitCode.RETRY  # what cannot pass by itself waits for the next save
        except Exception as error:
            self._end(type(error).__name__)
            say(f"not pushed: {type(error).__name__}")
            raise
        self._end(None)
        return True

    def _send(self, *, last: bool) -> None:
        repository, publication = self._opened()
        snapshots = {saved.step: saved for saved in self._run.complete_snapshots()}
        steps = sorted(snapshots)
        why = "" if last else " of a run that goes on"
        fault: KitError | None = None
        for step in steps:
            branches = []
            try:
                if step not in self._pushed:
                    branches.append(publication.branch(snapshots[step], f"step-{step}")[0])
                if step == steps[-1]:
                    branches.append(publication.branch(snapshots[step], MAIN, steps, why)[0])
                if branches:
                    send(self._run, repository, branches, say)
                    self._pushed = sorted({*self._pushed, step})
                    self._record()  # the next one may take long, or the hub may never answer
            except KitError as error:
                if error.exit_code == ExitCode.RETRY:
                    raise
                fault = fault or error  # a damaged snapshot does not keep the next one back
        if fault is not None:
            raise fault

    def _opened(self) -> tuple[Repository, Publication]:
        if self._repository is None or self._publication is None:
            name = default_name(self._run, self._recipe)
            repository = Repository(name, self._token, say)
            repository.open(self._run.run_id, private=self._recipe.hub_private_repo)
            self._publication = Publication(self._run, repository.name, lambda base: base_facts(base, self._token))
            self._repository = repository
            say(f"pushing to {repository.address}")
        return self._repository, self._publication

    def _end(self, fault: str | None) -> None:
        self._fault = fault
        self._record()

    def _record(self) -> None:
        repository = self._repository
        values: dict[str, Any] = {
            "repo": repository.name if repository else default_name(self._run, self._recipe),
            "address": repository.address if repository else None,
            "pushed": self._pushed,
            "fault": self._fault,
            "time": utc_now(),
        }
        try:
            write_json(self._run.path / RECORD, values, sync=False)
        except OSError:
            say(f"{RECORD} could not be written")


def say(line: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {printable(line)}", file=sys.stderr, flush=True)


def read_orders(orders: queue.Queue[str]) -> None:
    """Pass standard input on; when it ends, so does the process, whatever it is doing."""
    for line in sys.stdin:
        orders.put(line.strip())
    os._exit(ExitCode.FINISHED)


def follow(pusher: Pusher, orders: queue.Queue[str]) -> None:
    """Push at each order, and again after a while what failed, until the last round is done."""
    pause, pending, last = FIRST_PAUSE_S, False, False
    while True:
        try:
            heard = [orders.get(timeout=pause if pending else None)]
        except queue.Empty:
            heard = []
        while not orders.empty():
            heard.append(orders.get())
        last = last or END in heard
        if pusher.waits_for_the_end and not last:
            continue
        pending = not pusher.round(last=last)
        if last and not pending:
            return
        pause = FIRST_PAUSE_S if heard else min(2 * pause, LONGEST_PAUSE_S)


def main() -> None:
    """Push until the end."""
    if not Lifeline(os.getppid())():
        return
    os.nice(POLITE)
    token = find_token()
    if token is None or is_offline():
        say(TOKENLESS if token is None else OFFLINE)
        sys.exit(ExitCode.CONFIG)
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_orders, args=(orders,), daemon=True).start()
    follow(Pusher(RunDir(Path(sys.argv[1])), token), orders)
    # Not by returning: the thread that reads would be waited for.
    os._exit(ExitCode.FINISHED)


if __name__ == "__main__":
    main()
