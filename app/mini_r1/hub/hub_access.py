"""What the hub is asked and what it answers, in words: the doctor asks one question, `mini-r1 prefetch` more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mini_r1.findings import Finding, fail
from mini_r1.hub.hub_answers import no_name, not_there, status, unanswered
from mini_r1.machine.paths import hub_cache

TIMEOUT_S = 10.0
"""Seconds for the hub's answer."""
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
NO_PICKLES = "pickled ones are not read: use another"
BRANCH = "main"
"""What the hub takes where no revision is named."""


class Kind(NamedTuple):
    """Models and data sets differ in these words only."""

    word: str  # in the cache's folder names and the hub's addresses
    key: str  # of the recipe


MODEL, DATA = Kind("model", "model_name_or_path"), Kind("dataset", "dataset_id_or_path")
TOKENIZER = Kind("model", "tokenizer_name_or_path")


def is_path(name: str) -> bool:
    """Whether a recipe's name means a place on this machine: it is there, or is written as one."""
    return Path(name).exists() or name.startswith((".", "/", "~"))


def ask(environment: Mapping[str, str], kind: Kind, name: str, revision: str | None, *, sizes: bool = False) -> Any:
    """The repository's commit (`sha`) and files (`siblings`), with their sizes if those are wanted.

    Raises:
        OSError, ValueError: as `refused` puts into words.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    hub = HfApi(endpoint=environment.get("HF_ENDPOINT") or None)
    facts = hub.repo_info(name, repo_type=kind.word, revision=revision, timeout=TIMEOUT_S, files_metadata=sizes)
    if getattr(facts, "gated", False):  # then the hub tells everybody what there is, and keeps the files
        try:
            hub.auth_check(name, repo_type=kind.word)
        except GatedRepoError:
            raise
        except (OSError, ValueError):
            pass  # a mirror need not know this question: the files will tell
    return facts


def refused(kind: Kind, name: str, revision: str | None, error: Exception) -> Finding:
    """What the hub's error says, and what to do about it; of the network's errors, that the hub does not answer."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return fail(f"{name} is gated", "accept its terms on the hub, and set HF_TOKEN to a token of yours", "recipe")
    if isinstance(error, RepositoryNotFoundError):
        return fail(
            not_there(f"{kind.word} {name}"),
            f"check {kind.key}; for a private one set HF_TOKEN",
            "recipe",
        )
    if isinstance(error, RevisionNotFoundError):
        return fail(f"{name} has no revision {revision}", f"check the revision beside {kind.key}", "recipe")
    if isinstance(error, HFValidationError):
        return fail(no_name(name, error), f"check {kind.key}", "recipe")
    if status(error) in (401, 403):
        return fail(f"the hub does not let this user have {name}", "check HF_TOKEN, or unset it", "recipe")
    return fail(
        unanswered(error, name),
        "give this node a network (HTTPS_PROXY, HF_ENDPOINT), or run `mini-r1 prefetch RECIPE` where there is one and "
        "set HF_HUB_OFFLINE=1 here",
        "node",
    )


def cached(
    environment: Mapping[str, str], name: str, revision: str | None, file: str, kind: Kind = MODEL
) -> str | None:
    """Where the cache has a file of a repository; None where it has not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            name, file, cache_dir=hub_cache(environment), revision=revision, repo_type=kind.word
        )
    except HFValidationError:
        return None
    return found if isinstance(found, str) else None


def repository_folder(cache: Path, kind: Kind, name: str) -> Path:
    """Of a repository in the hub's cache, there or not."""
    from huggingface_hub.file_download import repo_folder_name

    return cache / str(repo_folder_name(repo_id=name, repo_type=kind.word))


def cached_folder(environment: Mapping[str, str], name: str, revision: str | None, kind: Kind) -> Path | None:
    """The folder of a revision in the cache, whole or not; None where there is none."""
    repository = repository_folder(hub_cache(environment), kind, name)
    try:
        commit = (repository / "refs" / (revision or BRANCH)).read_text().strip()
    except OSError:
        commit = revision or ""  # a commit needs no reference
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None
