"""Model and data: they are here whole, or the hub has them. Nothing is fetched; the hub is asked one question each."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mini_r1.doctor.case import Case
from mini_r1.errors import ExitCode
from mini_r1.findings import Finding, fail, ok, skip, warn
from mini_r1.hub import hub_access
from mini_r1.hub.hub_access import ADAPTER, CONFIG, INDEX, WEIGHTS
from mini_r1.hub.hub_errors import HubError
from mini_r1.hub.repo_kinds import DATA, MODEL, RepoKind
from mini_r1.machine.paths import hub_cache, in_pod, is_offline
from mini_r1.recipe.fields import GENERATED
from mini_r1.recipe.model_kinds import FIRST_VERSION, later_kind_by_name, unknown_kind
from mini_r1.tasks.countdown.data import missing_parts

PREFETCH = "run `mini-r1 prefetch RECIPE` where there is a network"
IN_KUBERNETES = ", in Kubernetes with k8s/overlays/prefetch"


def model(case: Case) -> Finding:
    """The model is here whole, or the hub has it; and it is not of a kind that came after the pinned transformers."""
    if case.recipe is None:
        return skip("no recipe")
    name, revision = case.recipe.model_name_or_path, case.recipe.model_revision
    if case.recipe.built_in:
        return ok(f"{name}: made on the spot")
    if hub_access.is_path(name):
        return _local_model(name, Path(name))
    kind = later_kind_by_name(name)
    if kind is not None:
        return fail(unknown_kind(name, kind, ""), "", "recipe")
    return _on_hub(case, MODEL, name, revision, _finder(hub_access.cached_folder(case.environment, name, revision)))


def _local_model(name: str, folder: Path) -> Finding:
    return _whole(name, _finder(folder))


def _finder(folder: Path | None) -> Callable[[str], str | None]:
    """Return a function that gives the path of a file in the folder, or None."""
    return lambda file: str(folder / file) if folder and (folder / file).is_file() else None


def _whole(name: str, find: Callable[[str], str | None]) -> Finding:
    """Whether configuration and every file of the weights are there."""
    if find(ADAPTER):
        return ok(f"{name}: an adapter")
    config = find(CONFIG)
    if config is None:
        return fail(
            f"{name} holds no config.json",
            "name a directory or repository that transformers' save_pretrained wrote",
            "recipe",
        )
    kind = _object(config).get("model_type")
    if isinstance(kind, str) and kind in FIRST_VERSION:
        return fail(unknown_kind(name, kind, ""), "", "recipe")
    index = find(INDEX)
    if index is None:
        if find(WEIGHTS) is None:
            return fail(
                f"{name} has no safetensors weights", "pickled ones are not read: convert or fetch it", "recipe"
            )
        return ok(f"{name}: whole")
    shards = sorted({str(file) for file in (_object(index).get("weight_map") or {}).values()})
    missing = [file for file in shards if find(file) is None]
    if missing or not shards:
        which = f"{len(missing)} of {len(shards)} files are missing, {missing[0]} among them" if missing else "no files"
        return fail(f"{name}, weights: {which}", f"copy it again, or {PREFETCH}", "recipe")
    return ok(f"{name}: whole, {len(shards)} files")


def _object(file: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def data(case: Case) -> Finding:
    """The data is here, or the hub has it."""
    if case.recipe is None:
        return skip("no recipe")
    name = case.recipe.dataset_id_or_path
    if name == GENERATED:
        return ok("generated here")
    path = Path(name).expanduser()
    if path.exists():
        return ok(f"{name}: here")
    if not case.recipe.data_on_hub or name.startswith((".", "/", "~")):
        return fail(f"{name}: no such file", "check dataset_id_or_path; relative paths start where you are", "recipe")
    return _on_hub(case, DATA, name, case.recipe.dataset_revision, lambda _: _parquet(case, name))


def _parquet(case: Case, name: str) -> str | None:
    """A Parquet file of the cached revision, if all are there that its names speak of."""
    revision = case.recipe.dataset_revision if case.recipe else None
    folder = hub_access.cached_folder(case.environment, name, revision, DATA)
    files = sorted(folder.rglob("*.parquet")) if folder else []
    return str(files[0]) if files and not missing_parts(files) else None


def _on_hub(case: Case, kind: RepoKind, name: str, revision: str | None, find: Callable[[str], str | None]) -> Finding:
    """A repository that is in the cache, or that the hub is asked for."""
    in_cache = find(CONFIG) is not None or find(ADAPTER) is not None
    if in_cache and (kind is DATA or is_offline(case.environment)):
        return ok(f"{name}: in the cache") if kind is DATA else _whole(name, find)
    if is_offline(case.environment):
        where = hub_cache(case.environment)
        there = _in_cache(where, kind)
        near = difflib.get_close_matches(name, there, n=1)
        hint = "; another revision or a part of it is" if name in there else ""
        hint = hint or (f"; did you mean {near[0]}, which is?" if near else "")
        at = f" at revision {revision}" if revision and revision != hub_access.BRANCH else ""
        return fail(
            f"{name}{at} is not in the cache {where}, and HF_HUB_OFFLINE is set{hint}",
            f"check {kind.key}, or {PREFETCH}{IN_KUBERNETES if in_pod(case.environment) else ''}",
            "recipe",
        )
    answer = _ask_hub(case, kind, name, revision)
    if answer.status == "fail" and answer.cause == "node" and in_cache:
        return warn(
            f"{answer.detail}; {name} is in the cache", "set HF_HUB_OFFLINE=1, so that nobody waits for the hub"
        )
    return answer


def _in_cache(folder: Path, kind: RepoKind) -> list[str]:
    """Names of the repositories that the cache holds."""
    prefix = f"{kind.word}s--"
    return [path.name.removeprefix(prefix).replace("--", "/", 1) for path in folder.glob(f"{prefix}*")]


def _ask_hub(case: Case, kind: RepoKind, name: str, revision: str | None) -> Finding:
    try:
        facts = hub_access.ask(case.environment, kind, name, revision)
    except HubError as error:
        return fail(error.detail, error.fix, "recipe") if error.exit_code == ExitCode.CONFIG else _no_hub(error)
    files = [entry.rfilename for entry in facts.siblings or []]
    if kind is MODEL and files and not any(file.endswith(".safetensors") for file in files):
        return fail(f"{name} has no safetensors weights on the hub", hub_access.NO_PICKLES, "recipe")
    return ok(f"{name}: on the hub at {(facts.sha or 'an unknown commit')[:12]}")


def _no_hub(error: HubError) -> Finding:
    return fail(
        error.detail,
        "give this node a network (HTTPS_PROXY, HF_ENDPOINT), or run `mini-r1 prefetch RECIPE` on a machine that has "
        "one and set HF_HUB_OFFLINE=1 here",
        "node",
    )
