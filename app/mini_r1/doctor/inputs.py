"""Checks of model and data: they are here whole, or the hub has them. Nothing is fetched; the hub gets one question
for each."""

import difflib
from pathlib import Path

from mini_r1.doctor.case import Case
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub import hub_access
from mini_r1.hub.hub_access import ADAPTER, CONFIG, DATA, MODEL, RepoKind
from mini_r1.hub.hub_errors import HubError
from mini_r1.machine.findings import Finding, fail, from_error, ok, skip, warn
from mini_r1.machine.paths import hub_cache, in_pod, is_offline
from mini_r1.recipe.fields import GENERATED
from mini_r1.recipe.model_kinds import later_kind_by_name, unknown_kind
from mini_r1.run.files import read_object
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.problem_files import folder_files

PREFETCH = "run `mini-r1 prefetch RECIPE` where there is a network"


def model(case: Case) -> Finding:
    """The model is here whole, or the hub has it; and its kind is not newer than the pinned transformers."""
    if case.recipe is None:
        return skip("no recipe")
    name, revision = case.recipe.model_name_or_path, case.recipe.model_revision
    if case.recipe.built_in:
        return ok(f"{name}: built in")
    if hub_access.is_path(name):
        return _check_files(name, Path(name))
    kind = later_kind_by_name(name)
    if kind is not None:
        return fail(unknown_kind(name, kind, ""), "", "recipe")
    folder = hub_access.cached_folder(case.environment, name, revision)
    begun = folder and any((folder / file).is_file() for file in (CONFIG, ADAPTER))
    return _check_hub(case, MODEL, name, revision, folder if begun else None)


def _check_files(name: str, folder: Path) -> Finding:
    """Check that the configuration and every file of the weights are here."""
    if (folder / ADAPTER).is_file():
        return ok(f"{name}: an adapter")
    try:
        files = hub_access.weight_files(name, lambda file: (folder / file).is_file(), lambda f: read_object(folder / f))
    except KitError as error:
        return from_error(error)
    return ok(f"{name}: whole, weights in {len(files)} files")


def data(case: Case) -> Finding:
    """The data is here, or the hub has it."""
    if case.recipe is None:
        return skip("no recipe")
    name, revision = case.recipe.dataset_id_or_path, case.recipe.dataset_revision
    if name == GENERATED:
        return ok("generated here")
    if Path(name).exists():
        return ok(f"{name}: here")
    if not case.recipe.data_on_hub or name.startswith((".", "/", "~")):
        fix = "check dataset_id_or_path; relative paths start in the current folder"
        return fail(f"{name}: no such file", fix, "recipe")
    folder = hub_access.cached_folder(case.environment, name, revision, DATA)
    splits = [case.recipe.dataset_split, *filter(None, [case.recipe.dataset_test_split])]
    try:
        whole = folder and folder_files(folder, case.recipe.dataset_config, splits, f"{name} in the cache", deep=True)
    except DataError as error:
        if is_offline(case.environment):
            return from_error(error)
        whole = None
    return _check_hub(case, DATA, name, revision, folder if whole else None)


def _check_hub(case: Case, kind: RepoKind, name: str, revision: str | None, cached: Path | None) -> Finding:
    """Check that a repository is in the cache, or else that the hub has it."""
    offline = is_offline(case.environment)
    if cached and (kind is DATA or offline):
        return ok(f"{name}: in the cache") if kind is DATA else _check_files(name, cached)
    if offline:
        return _report_missing(case, kind, name, revision)
    try:
        facts = hub_access.ask(case.environment, kind, name, revision)
    except HubError as error:
        if error.exit_code == ExitCode.CONFIG:
            return fail(error.detail, error.fix, "recipe")
        if cached:
            fix = "set HF_HUB_OFFLINE=1, so that no process waits for the hub"
            return warn(f"{error.detail}; {name} is in the cache", fix)
        fix = f"give this node a network (HTTPS_PROXY, HF_ENDPOINT), or {PREFETCH} and set HF_HUB_OFFLINE=1 here"
        return fail(error.detail, fix, "node")
    files = [entry.rfilename for entry in facts.siblings or []]
    if kind is MODEL and files and not any(file.endswith(".safetensors") for file in files):
        return fail(f"{name} has no safetensors weights on the hub", hub_access.NO_PICKLES, "recipe")
    return ok(f"{name}: on the hub at {(facts.sha or 'an unknown commit')[:12]}")


def _report_missing(case: Case, kind: RepoKind, name: str, revision: str | None) -> Finding:
    """Return the failure of what is not in the cache of a process that is offline."""
    cache, prefix = hub_cache(case.environment), f"{kind.type}s--"
    there = [path.name.removeprefix(prefix).replace("--", "/", 1) for path in cache.glob(f"{prefix}*")]
    close = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean {close[0]}, which is?" if close else ""
    if name in there:
        hint = "; another revision or a part of it is"
    at = f" at revision {revision}" if revision and revision != hub_access.MAIN else ""
    pod = ", in Kubernetes with k8s/overlays/prefetch" if in_pod(case.environment) else ""
    fix = f"check {kind.key}, or {PREFETCH}{pod}"
    return fail(f"{name}{at} is not in the cache {cache}, and HF_HUB_OFFLINE is set{hint}", fix, "recipe")
