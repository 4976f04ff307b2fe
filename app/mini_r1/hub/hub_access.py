"""What a recipe may name on the hub, one question to the hub, and what its cache has: for prefetch and the doctor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mini_r1.errors import KitError
from mini_r1.hub.hub_errors import HubError, hub_error
from mini_r1.machine.paths import hub_cache
from mini_r1.recipe.model_kinds import refuse_later_kind
from mini_r1.values import mapping

TIMEOUT_S = 10.0
"""Seconds for the hub's answer."""
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
NO_PICKLES = "pickled ones are not read: use another"
MAIN = "main"
"""The branch that the hub serves if no revision is named."""


class RepoKind(NamedTuple):
    """An input of a recipe: its name, the hub's type of its repository, and its key in the recipe."""

    input: str
    type: str
    key: str


MODEL = RepoKind("model", "model", "model_name_or_path")
TOKENIZER = RepoKind("tokenizer", "model", "tokenizer_name_or_path")
DATA = RepoKind("data", "dataset", "dataset_id_or_path")


def is_path(name: str) -> bool:
    """Return whether a recipe's name means a file or folder: it exists, or is written as a path."""
    return Path(name).exists() or name.startswith((".", "/", "~"))


def refuse_no_model(name: str, *, has_problems: bool) -> None:
    """Raise a KitError for a name that is neither a model's directory nor, with problems, can be its id on the hub."""
    path = Path(name)
    if not path.is_dir() and is_path(name):
        raise KitError(f"there is no directory {name}: name a run, a model directory or a model's id on the hub")
    if path.is_dir() and not any((path / file).is_file() for file in (CONFIG, ADAPTER)):
        raise KitError(
            f"{name} holds neither a run (no recipe.yaml) nor a model or adapter (no {CONFIG}, no {ADAPTER})"
        )
    if not path.is_dir() and not has_problems:
        raise KitError(f"there is no directory {name}; if it is a model on the hub, name a file with --problems")


def weight_files(name: str, has: Callable[[str], bool], read: Callable[[str], dict[str, Any]]) -> list[str]:
    """Return the files of a model's weights; a KitError if one is missing, or the kit can't load the model."""
    if not has(CONFIG):
        fix = "name a directory or repository that transformers' save_pretrained wrote"
        raise HubError(f"{name} holds no config.json", fix)
    refuse_later_kind(name, read(CONFIG).get("model_type"))
    if has(WEIGHTS):  # transformers takes it first
        return [WEIGHTS]
    if not has(INDEX):
        raise HubError(f"{name} has no safetensors weights", NO_PICKLES)
    files = sorted({str(file) for file in mapping(read(INDEX).get("weight_map")).values()})
    missing = [file for file in files if not has(file) or not file.endswith(".safetensors")]
    if missing or not files:
        found = f"{len(missing)} of {len(files)} files are missing, such as {missing[0]}" if missing else "no files"
        raise HubError(f"{name}, weights: {found}", "fetch or copy it again, or use another revision")
    return files


def ask(environment: Mapping[str, str], kind: RepoKind, name: str, revision: str | None, *, sizes: bool = False) -> Any:
    """Return the repository's commit (`sha`) and files (`siblings`), with their sizes on request.

    Errors are those of `hub_error`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    hub = HfApi(endpoint=environment.get("HF_ENDPOINT") or None)
    try:
        facts = hub.repo_info(name, repo_type=kind.type, revision=revision, timeout=TIMEOUT_S, files_metadata=sizes)
    except Exception as error:
        raise hub_error(error, name, kind, revision) from error
    if getattr(facts, "gated", False):  # the hub lists the files for everyone, and serves them to some
        try:
            hub.auth_check(name, repo_type=kind.type)
        except GatedRepoError as error:
            raise hub_error(error, name, kind, revision) from error
        except (OSError, ValueError):
            pass  # a mirror may not answer this; fetching the files will tell
    return facts


def cached_folder(
    environment: Mapping[str, str], name: str, revision: str | None, kind: RepoKind = MODEL
) -> Path | None:
    """Return the folder of a revision in the cache, complete or not; None if there is none."""
    from huggingface_hub import snapshot_download

    options = {"repo_type": kind.type, "revision": revision, "cache_dir": hub_cache(environment)}
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except (OSError, ValueError):  # not in the cache, or not a valid name
        return None
