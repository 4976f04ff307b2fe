"""What a recipe names on the hub, and which files of it a run can use.

Never fetched, because the kit never reads it: pickled weights, other frameworks' weights, a repository's code.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from mini_r1.console import shown_bytes
from mini_r1.errors import KitError
from mini_r1.hub import hub_access
from mini_r1.hub.hub_access import ADAPTER, CONFIG, INDEX, WEIGHTS
from mini_r1.hub.hub_errors import fetch_errors
from mini_r1.hub.repo_kinds import DATA, MODEL, TOKENIZER, RepoKind
from mini_r1.machine.paths import expand_user, hub_cache
from mini_r1.recipe.fields import GENERATED, Recipe
from mini_r1.recipe.model_kinds import FIRST_VERSION, unknown_kind
from mini_r1.tasks.countdown.data import missing_parts

SMALL_FILES: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Suffixes of the files that are read with the weights: configuration, chat template, vocabulary."""


class HubFile(NamedTuple):
    """A file on the hub: its name, its bytes, and its name in the cache's `blobs`, which is the hub's hash of it."""

    name: str
    size: int
    blob: str


@dataclass(frozen=True, slots=True)
class Part:
    """One input of a recipe, and what is known of it on the hub.

    `revision` None is the hub's default branch, `commit` what the revision is now. `files` are those that a run can
    use, `fetched` the bytes of them that were not in the cache.
    """

    kind: RepoKind
    name: str
    on_hub: bool
    revision: str | None = None
    commit: str | None = None
    files: tuple[HubFile, ...] = ()
    fetched: int = 0
    note: str = ""

    @property
    def bytes(self) -> int:
        """Return the size of all its files."""
        return sum(file.size for file in self.files)

    def blobs(self, cache: Path) -> Path:
        """Return the folder of its contents in the cache, which may not exist."""
        from huggingface_hub.file_download import repo_folder_name

        return cache / str(repo_folder_name(repo_id=self.name, repo_type=self.kind.type)) / "blobs"

    def snapshot(self, cache: Path) -> Path:
        """Return the folder of its commit in the cache, which may not exist."""
        return self.blobs(cache).parent / "snapshots" / (self.commit or "")

    def missing_bytes(self, cache: Path) -> int:
        """Return the bytes that are still to be fetched; a file that was begun is resumed."""
        blobs, snapshot = self.blobs(cache), self.snapshot(cache)
        return sum(
            max(file.size - file_size(blobs / f"{file.blob}.incomplete"), 0)
            for file in self.files
            if not (snapshot / file.name).exists() and not (blobs / file.blob).exists()
        )

    def download(self, cache: Path, names: Iterable[str]) -> Path:
        """Fetch files by their names; return the folder of the commit.

        Raises:
            KitError: as `fetch_errors` describes it.
        """
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
        commit = f"{self.revision or hub_access.BRANCH}, {(self.commit or '')[:12]}"
        return f"{self.kind.input:9}  {self.name} ({commit}): {count}, {self.note}"


def recipe_parts(recipe: Recipe, environment: Mapping[str, str]) -> list[Part]:
    """Return model, tokenizer and data of a recipe, on the hub or not."""

    def part(kind: RepoKind, name: str, revision: str | None, not_on_hub: str | None) -> Part:
        exists = expand_user(name, environment).exists()
        if not_on_hub is None and (exists or hub_access.is_path(name) or (kind is DATA and not recipe.data_on_hub)):
            not_on_hub = f"a path, nothing to fetch{'' if exists else '; not on this machine'}"
        return Part(kind, name, not_on_hub is None, revision, note=not_on_hub or "")

    made = "made by the kit, nothing to fetch"
    model, data = recipe.model_name_or_path, recipe.dataset_id_or_path
    tokenizer = recipe.tokenizer_name_or_path or model
    own = recipe.tokenizer_name_or_path is None or (tokenizer == model and recipe.model_revision == hub_access.BRANCH)
    return [
        part(MODEL, model, recipe.model_revision, made if recipe.built_in else None),
        # model_revision is only of the model's repository.
        part(TOKENIZER, tokenizer, None, "the model's own, nothing more to fetch" if own else None),
        part(DATA, data, recipe.dataset_revision, made if data == GENERATED else None),
    ]


def look_up(part: Part, environment: Mapping[str, str]) -> Part:
    """Return the part with its commit and files; of a model, configuration and index are fetched to know them.

    Files of another size than on the hub are removed from the cache: huggingface_hub would keep them.

    Raises:
        KitError: the hub has nothing that a run can use, gives this user no access, or does not answer.
    """
    cache = hub_cache(environment)
    facts = hub_access.ask(environment, part.kind, part.name, part.revision, sizes=True)
    there = {
        each.rfilename: HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id)
        for each in facts.siblings or ()
    }
    part = replace(part, commit=str(facts.sha))
    blobs, snapshot = part.blobs(cache), part.snapshot(cache)
    for file in there.values():
        path, begun = snapshot / file.name, blobs / f"{file.blob}.incomplete"
        if path.is_file() and file_size(path) != file.size:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if file_size(begun) > file.size:
            begun.unlink(missing_ok=True)
    before = {name for name in there if (snapshot / name).exists()}
    select = {DATA: _data_files, TOKENIZER: _tokenizer_files, MODEL: _model_files}[part.kind]
    files = tuple(there[name] for name in sorted(select(part, set(there), cache)))
    return replace(part, files=files, fetched=sum(file.size for file in files if file.name not in before))


def _data_files(part: Part, there: set[str], cache: Path) -> list[str]:
    names = [name for name in there if name.endswith(".parquet")]
    if not names:
        raise KitError(f"{part.name} has no Parquet files on the hub: use another data set, or a local file")
    missing = missing_parts(map(Path, names))
    if missing:
        raise KitError(
            f"the hub lacks {len(missing)} Parquet files of {part.name}, such as {missing[0]}: check dataset_revision"
        )
    return names


def _tokenizer_files(part: Part, there: set[str], cache: Path) -> list[str]:
    names = _small_files(there)
    if not any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in names):
        raise KitError(f"{part.name} has no tokenizer on the hub: check {TOKENIZER.key}")
    return names


def _model_files(part: Part, there: set[str], cache: Path) -> list[str]:
    if ADAPTER in there:
        raise KitError(
            f"{part.name} is an adapter and can't be trained further: train its base model, or merge the two (peft's "
            "merge_and_unload) and train the result"
        )
    if CONFIG not in there:
        raise KitError(f"{part.name} holds no config.json: name a repository that transformers' save_pretrained wrote")
    if not there & {WEIGHTS, INDEX}:
        raise KitError(f"{part.name} has no safetensors weights on the hub: {hub_access.NO_PICKLES}")
    kind = _read(part, CONFIG, cache).get("model_type")
    if isinstance(kind, str) and kind in FIRST_VERSION:
        raise KitError(unknown_kind(part.name, kind, ""))
    if WEIGHTS in there:  # transformers takes it first
        return [*_small_files(there), WEIGHTS]
    weight_map = _read(part, INDEX, cache).get("weight_map")
    shards = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
    missing = sorted(name for name in shards if name not in there or not name.endswith(".safetensors"))
    if missing or not shards:
        which = f"{len(missing)} of {len(shards)} files, such as {missing[0]}" if missing else "all files"
        raise KitError(f"the hub lacks {which} of the weights of {part.name}: check the revision, or use another model")
    return [*_small_files(there), INDEX, *shards]


def _small_files(names: set[str]) -> list[str]:
    """Return the files read with the weights, without indices (of any weights) and folders (of other frameworks)."""
    found = [name for name in names if name.endswith(SMALL_FILES) and "/" not in name]
    return [name for name in found if not name.endswith(".index.json")]


def _read(part: Part, file: str, cache: Path) -> dict[str, Any]:
    # By its commit: under a branch's name the cache would give a run this commit without its weights.
    path = replace(part, revision=part.commit).download(cache, [file]) / file
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"{file} of {part.name} cannot be read as JSON: check the revision") from error
    return value if isinstance(value, dict) else {}


def file_size(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile: huggingface_hub gave it its name
        return 0
