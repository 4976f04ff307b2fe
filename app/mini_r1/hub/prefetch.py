"""`mini-r1 prefetch`: what a recipe names on the hub, fetched into the hub's cache for machines without a network.

done = prefetch(find_recipe("mini-r1-3b"), [], os.environ, say=print, bars=False)
done.to_dict()  # the record, which is in done.record too
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import mini_r1
from mini_r1.console import shown_bytes
from mini_r1.disk_errors import existing
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub import hub_access
from mini_r1.hub.fetch_errors import AGAIN, cut_short, disk_error, in_words
from mini_r1.hub.hub_access import DATA, MODEL
from mini_r1.hub.recipe_downloads import Part, asked, named
from mini_r1.machine.paths import hub_cache, hub_home, is_offline
from mini_r1.machine.provenance import utc_now
from mini_r1.recipe.model_kinds import later_kind_by_name, unknown_kind
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.run_dir import write_json
from mini_r1.tasks.countdown.data import fetch_hub

OTHER_CACHES: Final = ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE")
"""Old variables with which transformers looks for models in another folder than the hub's cache."""
CACHE_VERSION: Final = "version.txt"
"""transformers 4.48.1 takes a cache without this file for one of before 4.22, and says offline that loading fails."""
SAY_EVERY_S: Final = 10.0
"""Seconds between two lines of progress."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """A finished prefetch; `record` is where it was written down, None where there was nothing to fetch."""

    recipe: str
    cache: Path
    parts: tuple[Part, ...]
    record: Path | None
    time: str

    def to_dict(self) -> dict[str, Any]:
        """The record, and the --json."""
        return {
            "recipe": self.recipe,
            "time": self.time,
            "kit": mini_r1.__version__,
            "cache": str(self.cache),
            "record": str(self.record) if self.record else None,
            "parts": [part.to_dict() for part in self.parts],
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = [part.line() for part in self.parts]
        if self.record is None:
            return [*lines, "nothing of this is on the hub: it runs without a network as it is"]
        return [*lines, f"in {self.cache}, recorded in {self.record}", "run it with HF_HUB_OFFLINE=1"]


def prefetch(
    recipe_path: Path, overrides: Sequence[str], environment: Mapping[str, str], *, say: Say, bars: bool
) -> Done:
    """Fetch everything of a recipe that is on the hub; what is here already is not fetched again.

    Args:
        recipe_path: the recipe's file.
        overrides: of --set.
        environment: of this process, which huggingface_hub reads too.
        say: shows a line of progress.
        bars: let huggingface_hub draw its bars on standard error, in place of lines every few seconds.

    Raises:
        KitError: 78 where recipe, token or settings are wrong; 150 where hub, network or disk fail.
    """
    parts, cache = named(load_recipe(recipe_path, overrides), environment), hub_cache(environment)
    wanted = [part for part in parts if part.kind]
    if not wanted:
        return Done(recipe_path.stem, cache, tuple(parts), None, utc_now())
    _refuse_settings(wanted, environment)
    record = hub_home(environment) / "mini-r1" / "prefetched" / f"{recipe_path.stem}.json"
    for folder in (cache, record.parent):
        _make_writable(folder)
    _quieten(bars=bars)
    with _ends_at_once():
        plan = [asked(part, environment) for part in wanted]
        _refuse_small_disk(plan, cache)
        fetched = {part.part: _fetch(part, environment, say, bars=bars) for part in plan}
    done = Done(recipe_path.stem, cache, tuple(fetched.get(part.part, part) for part in parts), record, utc_now())
    try:
        if not (cache / CACHE_VERSION).exists():
            (cache / CACHE_VERSION).write_text("1")
        write_json(record, done.to_dict())
    except OSError as error:
        raise disk_error(record.parent, error) from error
    return done


# --- before anything is fetched ---


def _refuse_settings(parts: Sequence[Part], environment: Mapping[str, str]) -> None:
    if is_offline(environment):
        names = " and ".join(part.name for part in parts)
        raise KitError(
            f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and {names} must be fetched from the hub: unset it for "
            "this command, on a machine with a network"
        )
    for variable in OTHER_CACHES:
        if environment.get(variable):
            raise KitError(
                f"{variable} is set: transformers would look for the model there and not in the hub's cache. Unset it, "
                "here and in the job; HF_HOME says where everything is"
            )
    for part in parts:
        kind = later_kind_by_name(part.name) if part.kind is MODEL else None
        if kind is not None:
            raise KitError(unknown_kind(part.name, kind, ""))


def _make_writable(folder: Path) -> None:
    """Make the folder, and find out that it can be written before hours of fetching.

    Raises:
        KitError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise disk_error(folder, error) from error


def _quieten(*, bars: bool) -> None:
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # its warnings tell addresses, which are signed where files are large
    if not bars:
        disable_progress_bars()


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """A signal ends the process now; huggingface_hub's threads would first fetch their file to its end.

    Nothing is lost: every file is given its name when it is whole, and what there is of it is gone on with.
    """

    def stop(number: int, frame: object) -> None:
        os.write(2, f"\nstopped: {AGAIN}\n".encode())
        os._exit(ExitCode.INTERRUPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_small_disk(parts: Sequence[Part], cache: Path) -> None:
    need = sum(part.missing_bytes(cache) for part in parts)
    free = shutil.disk_usage(existing(cache)).free
    if need > free:
        raise KitError(
            f"{shown_bytes(need)} are to be fetched and {cache} has {shown_bytes(free)} free: free some, or set "
            "HF_HOME to a folder on a larger disk, here and in the job",
            ExitCode.RETRY,
        )


# --- fetching ---


def _fetch(part: Part, environment: Mapping[str, str], say: Say, *, bars: bool) -> Part:
    """The part, fetched and looked at: every file is there under the revision that a run will ask for, in its size."""
    cache = hub_cache(environment)
    missing = part.missing_bytes(cache)
    if missing:
        say(f"{part.part}: fetching {shown_bytes(missing)} of {part.name}")
    with (
        _progress(part, cache, say, 0 if bars else missing),
        in_words(part.repository, part.name, part.revision, cache),
    ):
        commit = _download(part, cache)
    if commit != part.commit:
        raise KitError(f"{part.name} was changed on the hub while it was fetched: {AGAIN}", ExitCode.RETRY)
    for file in part.files:
        found = hub_access.cached(environment, part.name, part.revision, file.name, part.repository)
        if found is None or os.path.getsize(found) != file.size:
            raise cut_short(f"{file.name} of {part.name}")
    return replace(part, note="fetched" if part.fetched else "here already")


def _download(part: Part, cache: Path) -> str:
    """Fetch what is missing; the commit that was fetched."""
    if part.kind is DATA:
        return fetch_hub(part.name, part.revision)[1]
    from huggingface_hub import snapshot_download

    names = [glob.escape(file.name) for file in part.files]
    return Path(snapshot_download(part.name, revision=part.revision, cache_dir=cache, allow_patterns=names)).name


@contextmanager
def _progress(part: Part, cache: Path, say: Say, total: int) -> Iterator[None]:
    """A line every few seconds of long work; none with a total of 0."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAY_EVERY_S):
            say(f"{part.part}: {shown_bytes(total - part.missing_bytes(cache))} of {shown_bytes(total)}")

    thread = threading.Thread(target=watch, daemon=True)
    if total:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if total:
            thread.join()
