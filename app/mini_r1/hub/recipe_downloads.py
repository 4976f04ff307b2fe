"""What a recipe names on the hub, and which files of it a run can use: a look at the hub, and two small files of it.

Left out is what the kit never reads: pickled weights, other frameworks' weights, a repository's own code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mini_r1.console import shown_bytes
from mini_r1.errors import KitError
from mini_r1.hub import hub_access
from mini_r1.hub.fetch_errors import in_words
from mini_r1.hub.hub_access import ADAPTER, CONFIG, DATA, INDEX, MODEL, TOKENIZER, WEIGHTS, Kind
from mini_r1.machine.paths import expand_user, hub_cache
from mini_r1.recipe.fields import GENERATED, Recipe
from mini_r1.recipe.model_kinds import FIRST_VERSION, unknown_kind
from mini_r1.tasks.countdown.data import missing_parts

PAPERS: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of what is read beside the weights: configurations, chat template, vocabulary; some MB in all."""


@dataclass(frozen=True, slots=True)
class File:
    """A file on the hub."""

    name: str
    size: int
    blob: str
    """Its name in the cache's `blobs`: the hash that the hub has of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the recipe's inputs, and what became of it.

    Attributes:
        part: `model`, `tokenizer` or `data`.
        name: as the recipe has it.
        kind: of repository; None where nothing is on the hub.
        revision: as asked for; None is the hub's default branch.
        commit: what that was.
        files: that a run can use.
        fetched: bytes of those that were not here before.
        note: in words.
    """

    part: str
    name: str
    kind: Kind | None = None
    revision: str | None = None
    commit: str | None = None
    files: tuple[File, ...] = ()
    fetched: int = 0
    note: str = ""

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.size for file in self.files)

    @property
    def repository(self) -> Kind:
        """Its kind, of a part that is on the hub."""
        assert self.kind is not None, self
        return self.kind

    def folder(self, cache: Path) -> Path:
        """Of the repository in the hub's cache, there or not."""
        return hub_access.repository_folder(cache, self.repository, self.name)

    def snapshot(self, cache: Path) -> Path:
        """Of the commit in the hub's cache, there or not."""
        return self.folder(cache) / "snapshots" / (self.commit or "")

    def missing_bytes(self, cache: Path) -> int:
        """What the cache still lacks of it, as the disk will feel it."""
        blobs, missing = self.folder(cache) / "blobs", 0
        for file in self.files:
            if (self.snapshot(cache) / file.name).exists() or (blobs / file.blob).exists():
                continue
            missing += max(file.size - _size(blobs / f"{file.blob}.incomplete"), 0)
        return missing

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        names = ("name", "revision", "commit", "bytes", "fetched", "note")
        values = {name: getattr(self, name) for name in names}
        return {"kind": self.part, **values, "files": [file.name for file in self.files]}

    def line(self) -> str:
        """For people."""
        if self.kind is None:
            return f"{self.part:9}  {self.name}: {self.note}"
        count = f"{len(self.files)} file{'s' if len(self.files) != 1 else ''}"
        where = f"{self.revision or hub_access.BRANCH}, {(self.commit or '')[:12]}"
        return f"{self.part:9}  {self.name} ({where}): {count}, {shown_bytes(self.bytes)}, {self.note}"


def named(recipe: Recipe, environment: Mapping[str, str]) -> list[Part]:
    """Model, tokenizer and data of a recipe; those with a kind are on the hub."""

    def place(part: str, name: str, kind: Kind, revision: str | None) -> Part:
        here = expand_user(name, environment).exists()
        if here or hub_access.is_path(name) or (kind is DATA and not recipe.data_on_hub):
            return Part(part, name, note=f"a path, nothing to fetch{'' if here else '; not on this machine'}")
        return Part(part, name, kind, revision)

    name, tokenizer, data = recipe.model_name_or_path, recipe.tokenizer_name_or_path, recipe.dataset_id_or_path
    parts = []
    if recipe.built_in:
        parts.append(Part("model", name, note="made on the spot, nothing to fetch"))
    else:
        parts.append(place("model", name, MODEL, recipe.model_revision))
    if tokenizer is None or (tokenizer == name and recipe.model_revision == hub_access.BRANCH):
        parts.append(Part("tokenizer", tokenizer or name, note="the model's own, nothing to fetch besides"))
    else:  # of another repository the model's revision says nothing
        parts.append(place("tokenizer", tokenizer, TOKENIZER, None))
    if data == GENERATED:
        parts.append(Part("data", data, note="made on the spot, nothing to fetch"))
    else:
        parts.append(place("data", data, DATA, recipe.dataset_revision))
    return parts


def asked(part: Part, environment: Mapping[str, str]) -> Part:
    """The part with its commit and files; of a model, its configuration and its index of weights are fetched to know.

    Raises:
        KitError: the hub has nothing there that a run can use, does not let this user have it, or does not answer.
    """
    cache = hub_cache(environment)
    with in_words(part.repository, part.name, part.revision, cache):
        facts = hub_access.ask(environment, part.repository, part.name, part.revision, sizes=True)
    there = {file.name: file for file in map(_file, facts.siblings or [])}
    part = replace(part, commit=str(facts.sha))
    _drop_damaged(part, there.values(), cache)
    before = {name for name in there if (part.snapshot(cache) / name).exists()}
    names = {DATA: _data_files, TOKENIZER: _tokenizer_files, MODEL: _model_files}[part.repository](part, there, cache)
    files = tuple(there[name] for name in sorted(names))
    return replace(part, files=files, fetched=sum(file.size for file in files if file.name not in before))


def _data_files(part: Part, there: Mapping[str, File], cache: Path) -> list[str]:
    """Names of a data set's files.

    Raises:
        KitError: it has none, or not all.
    """
    names = [name for name in there if name.endswith(".parquet")]
    if not names:
        raise KitError(f"{part.name} has no Parquet files on the hub: use another data set, or a local file")
    missing = missing_parts(map(Path, names))
    if missing:
        raise KitError(
            f"of {part.name} the hub lacks {len(missing)} Parquet files, {missing[0]} among them: check the revision "
            "beside dataset_id_or_path"
        )
    return names


def _tokenizer_files(part: Part, there: Mapping[str, File], cache: Path) -> list[str]:
    """Names of a tokenizer's files.

    Raises:
        KitError: there is none.
    """
    names = _papers(there)
    if not any(name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece")) for name in names):
        raise KitError(f"{part.name} has no tokenizer on the hub: check {TOKENIZER.key}")
    return names


def _model_files(part: Part, there: Mapping[str, File], cache: Path) -> list[str]:
    """Names of a model's files.

    Raises:
        KitError: it is none that a recipe can train, or this user may not have it.
    """
    if ADAPTER in there:
        raise KitError(
            f"{part.name} is an adapter and is not trained further: train its base model, or merge the two into a "
            "model of its own (peft's merge_and_unload) and train that"
        )
    if CONFIG not in there:
        raise KitError(f"{part.name} holds no config.json: name a repository that transformers' save_pretrained wrote")
    if WEIGHTS not in there and INDEX not in there:
        raise KitError(f"{part.name} has no safetensors weights on the hub: {hub_access.NO_PICKLES}")
    kind = _read(part, CONFIG, cache).get("model_type")
    if isinstance(kind, str) and kind in FIRST_VERSION:
        raise KitError(unknown_kind(part.name, kind, ""))
    if WEIGHTS in there:  # which transformers takes first
        return [*_papers(there), WEIGHTS]
    weight_map = _read(part, INDEX, cache).get("weight_map")
    shards = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    missing = [name for name in shards if name not in there or not name.endswith(".safetensors")]
    if missing or not shards:
        which = f"{len(missing)} of {len(shards)} files, {missing[0]} among them" if missing else "all files"
        raise KitError(f"of the weights of {part.name} the hub lacks {which}: check the revision, or use another model")
    return [*_papers(there), INDEX, *shards]


def _papers(names: Iterable[str]) -> list[str]:
    """What is read beside the weights. An index belongs to its weights, and folders hold other frameworks' files."""
    return [name for name in names if name.endswith(PAPERS) and not name.endswith(".index.json") and "/" not in name]


def _read(part: Part, file: str, cache: Path) -> dict[str, Any]:
    """A small JSON file of a repository, fetched if need be."""
    from huggingface_hub import hf_hub_download

    with in_words(part.repository, part.name, part.revision, cache):
        path = hf_hub_download(part.name, file, revision=part.commit, cache_dir=cache)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"{file} of {part.name} cannot be read as JSON: check the revision") from error
    return value if isinstance(value, dict) else {}


def _file(entry: Any) -> File:
    return File(str(entry.rfilename), int(entry.size or 0), str(entry.lfs.sha256 if entry.lfs else entry.blob_id))


def _drop_damaged(part: Part, files: Iterable[File], cache: Path) -> None:
    """Remove what has another size than on the hub, and beginnings that are longer: huggingface_hub would keep them."""
    blobs = part.folder(cache) / "blobs"
    for file in files:
        path = part.snapshot(cache) / file.name
        if path.is_file() and path.stat().st_size != file.size:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        if _size(blobs / f"{file.blob}.incomplete") > file.size:
            (blobs / f"{file.blob}.incomplete").unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
