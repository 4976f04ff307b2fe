"""`mini-r1 prefetch`: fetch what a recipe names on the hub into the hub's cache, for machines without a network."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import mini_r1
from mini_r1.console import ProgressLine, shown_bytes
from mini_r1.disk_errors import existing
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub.hub_errors import RESUMES, cache_error, cut_short
from mini_r1.hub.recipe_downloads import Part, file_size, look_up, recipe_parts
from mini_r1.hub.repo_kinds import MODEL
from mini_r1.machine.paths import hub_cache, hub_home, is_offline
from mini_r1.machine.provenance import utc_now
from mini_r1.recipe.model_kinds import later_kind_by_name, unknown_kind
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import write_json

OTHER_CACHES: Final = ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE")
"""Old variables with which transformers looks for models in another folder than the hub's cache."""
CACHE_VERSION: Final = "version.txt"
"""Without this file transformers 4.48.1 takes a cache for one of before 4.22, and offline reports a failure."""
LOOK_EVERY_S: Final = 1.0
MIB: Final = 1 << 20


def prefetch(
    recipe_path: Path, overrides: Sequence[str], environment: Mapping[str, str], console: Console
) -> tuple[dict[str, Any], list[str]]:
    """Fetch everything of a recipe that is on the hub and not in the cache; return the record, and lines for people.

    `record` in the record is the file that it was written to, None if nothing of the recipe is on the hub. The
    environment must be this process's, which huggingface_hub reads too. The console is for progress.

    Raises:
        KitError: 78 for an error of recipe, token or settings; 150 for one of hub, network or disk.
    """
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # its warnings show addresses, which are signed for large files
    disable_progress_bars()
    parts, cache = recipe_parts(load_recipe(recipe_path, overrides), environment), hub_cache(environment)
    file = hub_home(environment) / "mini-r1" / "prefetched" / f"{recipe_path.stem}.json"
    on_hub = [part for part in parts if part.on_hub]
    if on_hub:
        _refuse_settings(on_hub, environment)
        for folder in (cache, file.parent):
            _make_writable(folder)
        with _exit_on_signal():
            found = [look_up(part, environment) for part in on_hub]
            _refuse_small_disk(found, cache)
            fetched = {part.kind: _fetch(part, cache, console) for part in found}
        parts = [fetched.get(part.kind, part) for part in parts]
    record = {
        "recipe": recipe_path.stem,
        "time": utc_now(),
        "kit": mini_r1.__version__,
        "cache": str(cache),
        "record": str(file) if on_hub else None,
        "parts": [part.to_dict() for part in parts],
    }
    lines = [part.line() for part in parts]
    if not on_hub:
        return record, [*lines, "nothing of this is on the hub: it runs without a network as it is"]
    try:
        if not (cache / CACHE_VERSION).exists():
            (cache / CACHE_VERSION).write_text("1")
        write_json(file, record)
    except OSError as error:
        raise cache_error(file.parent, error) from error
    return record, [*lines, f"in {cache}, recorded in {file}", "run it with HF_HUB_OFFLINE=1"]


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
                "here and in the job; HF_HOME sets the place of all caches"
            )
    for part in parts:
        kind = later_kind_by_name(part.name) if part.kind is MODEL else None
        if kind is not None:
            raise KitError(unknown_kind(part.name, kind, ""))


def _make_writable(folder: Path) -> None:
    """Make the folder and write to it, to fail before hours of fetching and not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cache_error(folder, error) from error


@contextmanager
def _exit_on_signal() -> Iterator[None]:
    """Exit at once on a signal; huggingface_hub's threads would first fetch their file to its end.

    Nothing is lost: a file gets its name when it is complete, and an incomplete one is resumed.
    """

    def stop(number: int, frame: object) -> None:
        os.write(2, f"\nstopped: {RESUMES}\n".encode())
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


def _fetch(part: Part, cache: Path, console: Console) -> Part:
    """Return the part, fetched, with every file in the size that the hub announced."""
    with _progress(part, cache, console):
        folder = part.download(cache, [file.name for file in part.files])
    if folder.name != part.commit:
        raise KitError(f"{part.name} was changed on the hub while it was fetched: {RESUMES}", ExitCode.RETRY)
    for file in part.files:
        if file_size(folder / file.name) != file.size:
            raise cut_short(f"{file.name} of {part.name}")
    return replace(part, note="fetched" if part.fetched else "already in the cache")


@contextmanager
def _progress(part: Part, cache: Path, console: Console) -> Iterator[None]:
    """Show how much of a part has arrived: huggingface_hub's own bars show nothing in a log."""
    total = part.missing_bytes(cache)
    if not total:
        yield
        return
    console.print(f"{part.kind.input}: fetching {shown_bytes(total)} of {part.name}", markup=False)
    ended = threading.Event()
    with ProgressLine(console, f"{part.kind.input}, MiB:", -(-total // MIB)) as line:

        def watch() -> None:
            while not ended.wait(LOOK_EVERY_S):
                line.update((total - part.missing_bytes(cache)) // MIB)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
