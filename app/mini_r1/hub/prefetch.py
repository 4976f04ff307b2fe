"""`mini-r1 prefetch`: fetch what a recipe names on the hub into the hub's cache, for machines without a network.

Never fetched, because the kit never reads it: pickled weights, other frameworks' weights, a repository's code.
"""

import glob
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

import mini_r1
from mini_r1.console import ProgressLine, shown_bytes
from mini_r1.disk_errors import existing
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub import hub_access
from mini_r1.hub.hub_access import ADAPTER, DATA, INDEX, MODEL, TOKENIZER, WEIGHTS, RepoKind
from mini_r1.hub.hub_errors import RESUMES, cache_error, cut_short, fetch_errors
from mini_r1.machine.paths import expand_user, hub_cache, hub_home, is_offline
from mini_r1.machine.provenance import utc_now
from mini_r1.recipe.fields import GENERATED, Recipe
from mini_r1.recipe.model_kinds import ADAPTER_REFUSED, later_kind_by_name, refuse_later_kind
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import load_object, write_json
from mini_r1.tasks.problem_files import README, choose_split, list_splits, missing_parts, read_readme

OTHER_CACHES: Final = ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE")
"""Old variables with which transformers looks for models in another folder than the hub's cache."""
CACHE_VERSION: Final = "version.txt"
"""Without this file transformers 4.48.1 takes a cache for one of before 4.22, and offline reports a failure."""
SMALL_FILES: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Suffixes of the files that are read with the weights: configuration, chat template, vocabulary."""
LOOK_EVERY_S: Final = 1.0
MIB: Final = 1 << 20


class HubFile(NamedTuple):
    """A file on the hub: its name, its bytes, and its name in the cache's `blobs`, which is the hub's hash of it."""

    name: str
    size: int
    blob: str


@dataclass(frozen=True, slots=True)
class Part:
    """One input of a recipe, and what is known of it on the hub.

    `revision` None is the hub's default branch, `commit` what the revision is now. `files` are those that a run can
    use, `fetched` the bytes of them that were not in the cache. `config` and `splits` choose from a data set.
    """

    kind: RepoKind
    name: str
    on_hub: bool
    revision: str | None = None
    commit: str | None = None
    files: tuple[HubFile, ...] = ()
    fetched: int = 0
    note: str = ""
    config: str | None = None
    splits: tuple[str | None, ...] = (None,)

    @property
    def bytes(self) -> int:
        """Return the size of all its files."""
        return sum(file.size for file in self.files)

    def folders(self, cache: Path) -> tuple[Path, Path]:
        """Return the folders of contents and of its commit in the cache, which may not exist."""
        from huggingface_hub.file_download import repo_folder_name

        folder = cache / str(repo_folder_name(repo_id=self.name, repo_type=self.kind.type))
        return folder / "blobs", folder / "snapshots" / (self.commit or "")

    def missing_bytes(self, cache: Path) -> int:
        """Return the bytes that are still to be fetched; a file that was begun is resumed."""
        blobs, snapshot = self.folders(cache)
        return sum(
            max(file.size - _file_size(blobs / f"{file.blob}.incomplete"), 0)
            for file in self.files
            if not (snapshot / file.name).exists() and not (blobs / file.blob).exists()
        )

    def download(self, cache: Path, names: Iterable[str]) -> Path:
        """Fetch files by their names; return the folder of the commit. Errors are those of `fetch_errors`."""
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        options = {"revision": self.revision, "repo_type": self.kind.type, "allow_patterns": patterns}
        with fetch_errors(cache, self.kind, self.name, self.revision):
            return Path(snapshot_download(self.name, cache_dir=cache, **options))

    def to_dict(self) -> dict[str, Any]:
        """Return it as prefetch records it."""
        names = ("name", "revision", "commit", "bytes", "fetched", "note")
        values = {name: getattr(self, name) for name in names}
        return {"kind": self.kind.input, **values, "files": [file.name for file in self.files]}

    def line(self) -> str:
        """Return one line for people."""
        if not self.on_hub:
            return f"{self.kind.input:9}  {self.name}: {self.note}"
        count = f"{len(self.files)} file{'s' if len(self.files) != 1 else ''}, {shown_bytes(self.bytes)}"
        commit = f"{self.revision or hub_access.MAIN}, {(self.commit or '')[:12]}"
        return f"{self.kind.input:9}  {self.name} ({commit}): {count}, {self.note}"


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
    parts, cache = _recipe_parts(load_recipe(recipe_path, overrides), environment), hub_cache(environment)
    file = hub_home(environment) / "mini-r1" / "prefetched" / f"{recipe_path.stem}.json"
    on_hub = [part for part in parts if part.on_hub]
    if on_hub:
        _refuse_settings(on_hub, environment)
        for folder in (cache, file.parent):
            _make_writable(folder)
        _exit_on_signal()
        found = [_look_up(part, environment, cache) for part in on_hub]
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


def _recipe_parts(recipe: Recipe, environment: Mapping[str, str]) -> list[Part]:
    """Return model, tokenizer and data of a recipe, on the hub or not."""

    def part(kind: RepoKind, name: str, revision: str | None, not_on_hub: str | None) -> Part:
        exists = expand_user(name, environment).exists()
        if not_on_hub is None and (exists or hub_access.is_path(name) or (kind is DATA and not recipe.data_on_hub)):
            not_on_hub = f"a path, nothing to fetch{'' if exists else '; not on this machine'}"
        return Part(kind, name, not_on_hub is None, revision, note=not_on_hub or "")

    made = "made by the kit, nothing to fetch"
    model, data = recipe.model_name_or_path, recipe.dataset_id_or_path
    tokenizer = recipe.tokenizer_name_or_path or model
    own = recipe.tokenizer_name_or_path is None or (tokenizer == model and recipe.model_revision == hub_access.MAIN)
    return [
        part(MODEL, model, recipe.model_revision, made if recipe.built_in else None),
        # model_revision is only of the model's repository.
        part(TOKENIZER, tokenizer, None, "the model's own, nothing more to fetch" if own else None),
        replace(
            part(DATA, data, recipe.dataset_revision, made if data == GENERATED else None),
            config=recipe.dataset_config,
            splits=(recipe.dataset_split, *filter(None, [recipe.dataset_test_split])),
        ),
    ]


# --- refuse what would fail after hours ---


def _refuse_settings(parts: Sequence[Part], environment: Mapping[str, str]) -> None:
    if is_offline(environment):
        names = " and ".join(part.name for part in parts)
        raise KitError(
            f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and {names} must be fetched from the hub: unset it for "
            "this command, on a machine with a network"
        )
    if variable := next(filter(environment.get, OTHER_CACHES), None):
        raise KitError(
            f"{variable} is set: transformers would look for the model there and not in the hub's cache. Unset it, "
            "here and in the job; HF_HOME sets the place of all caches"
        )
    for part in parts:
        if part.kind is MODEL:
            refuse_later_kind(part.name, later_kind_by_name(part.name))


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cache_error(folder, error) from error


def _refuse_small_disk(parts: Sequence[Part], cache: Path) -> None:
    need = sum(part.missing_bytes(cache) for part in parts)
    free = shutil.disk_usage(existing(cache)).free
    if need > free:
        raise KitError(
            f"{shown_bytes(need)} are to be fetched and {cache} has {shown_bytes(free)} free: free some, or set "
            "HF_HOME to a folder on a larger disk, here and in the job",
            ExitCode.RETRY,
        )


# --- fetch ---


def _exit_on_signal() -> None:
    """Exit at once on a signal; huggingface_hub's threads would first fetch their file to its end."""

    def stop(number: int, frame: object) -> None:
        os.write(2, f"\nstopped: {RESUMES}\n".encode())
        os._exit(ExitCode.INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _fetch(part: Part, cache: Path, console: Console) -> Part:
    """Return the part, fetched, with every file in the size that the hub announced."""
    total, kind = part.missing_bytes(cache), part.kind.input
    shown = console if total else Console(quiet=True)
    shown.print(f"{kind}: fetching {shown_bytes(total)} of {part.name}", markup=False)
    # huggingface_hub's own bars show nothing in a log.
    with ProgressLine(shown, f"{kind}, MiB:", -(-total // MIB)) as line, ThreadPoolExecutor(1) as pool:
        download = pool.submit(part.download, cache, [file.name for file in part.files])
        while wait([download], LOOK_EVERY_S).not_done:
            line.update((total - part.missing_bytes(cache)) // MIB)
    folder = download.result()
    if folder.name != part.commit:
        raise KitError(f"{part.name} was changed on the hub while it was fetched: {RESUMES}", ExitCode.RETRY)
    for file in part.files:
        if _file_size(folder / file.name) != file.size:
            raise cut_short(f"{file.name} of {part.name}")
    return replace(part, note="fetched" if part.fetched else "already in the cache")


# --- which files ---


def _look_up(part: Part, environment: Mapping[str, str], cache: Path) -> Part:
    """Return the part with its commit and files; of a model, configuration and index are fetched to know them.

    Files of another size than on the hub are removed from the cache: huggingface_hub would keep them. Raise KitError
    if the hub has nothing that a run can use, gives this user no access, or does not answer.
    """
    facts = hub_access.ask(environment, part.kind, part.name, part.revision, sizes=True)
    there = {
        each.rfilename: HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id)
        for each in facts.siblings or ()
    }
    part = replace(part, commit=str(facts.sha))
    blobs, snapshot = part.folders(cache)
    for file in there.values():
        path, begun = snapshot / file.name, blobs / f"{file.blob}.incomplete"
        if path.is_file() and _file_size(path) != file.size:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if _file_size(begun) > file.size:
            begun.unlink(missing_ok=True)
    before = {name for name in there if (snapshot / name).exists()}
    select = {DATA: _data_files, TOKENIZER: _tokenizer_files, MODEL: _model_files}[part.kind]
    files = tuple(there[name] for name in sorted(select(part, set(there), cache)))
    return replace(part, files=files, fetched=sum(file.size for file in files if file.name not in before))


def _data_files(part: Part, there: set[str], cache: Path) -> list[str]:
    readme = [README] if README in there else []  # it names the files of each configuration, without a network too
    if readme:
        replace(part, revision=part.commit).download(cache, readme)
    found = list_splits(there, read_readme(part.folders(cache)[1]), part.config, part.name)
    names = {name for split in part.splits for name in choose_split(found, split, part.name)}
    if missing := missing_parts(map(Path, names)):
        raise KitError(
            f"the hub lacks {len(missing)} files of {part.name}, such as {missing[0]}: check dataset_revision"
        )
    return [*names, *readme]


def _tokenizer_files(part: Part, there: set[str], cache: Path) -> list[str]:
    names = _small_files(there)
    if not any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in names):
        raise KitError(f"{part.name} has no tokenizer on the hub: check {TOKENIZER.key}")
    return names


def _model_files(part: Part, there: set[str], cache: Path) -> list[str]:
    if ADAPTER in there:
        raise KitError(ADAPTER_REFUSED.format(part.name))
    weights = hub_access.weight_files(part.name, there.__contains__, lambda file: _read(part, file, cache))
    return [*_small_files(there), *weights, *({INDEX} if WEIGHTS not in weights else ())]


def _small_files(names: set[str]) -> list[str]:
    """Return the files read with the weights, without indices (of any weights) and folders (of other frameworks)."""
    found = [name for name in names if name.endswith(SMALL_FILES) and "/" not in name]
    return [name for name in found if not name.endswith(".index.json")]


def _read(part: Part, file: str, cache: Path) -> dict[str, Any]:
    # By its commit: under a branch's name the cache would give a run this commit without its weights.
    path = replace(part, revision=part.commit).download(cache, [file]) / file
    try:
        return load_object(path)
    except ValueError as error:
        raise KitError(f"{file} of {part.name} {error}: check the revision") from error


def _file_size(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile: huggingface_hub gave it its name
        return 0
