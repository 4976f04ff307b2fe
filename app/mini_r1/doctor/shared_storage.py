"""What the compute nodes must see as this node does: run directory, hub's cache, model, data.

A login node cannot look at another node's disks. It can tell a filesystem of the network from one that only it has.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from mini_r1.doctor import inputs, local_storage
from mini_r1.doctor.case import Case
from mini_r1.doctor.site_file import Site, is_mounted
from mini_r1.findings import Finding, fail, ok, skip, warn, worst
from mini_r1.hub import hub_access
from mini_r1.hub.recipe_downloads import recipe_parts
from mini_r1.machine.paths import expand_user, hub_cache
from mini_r1.recipe.fields import GENERATED

SHARED: Final = local_storage.NETWORK | {"afs", "dvs", "gfs2", "ocfs2", "panfs", "pvfs2", "virtiofs", "wekafs"}
"""Filesystem types that several machines have; dvs is how Cray's compute nodes see one, virtiofs a virtual machine."""
FLEETING: Final = frozenset(
    {"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "squashfs", "fuse.fuse-overlayfs", "fuse.squashfuse"}
)
"""Types that one machine has, in memory or as a container's own."""
TOKENIZER_FILE: Final = "tokenizer_config.json"


def shared(site: Site, path: Path, what: str) -> Finding:
    """The compute nodes can have the same path."""
    kind = local_storage.filesystem(site.case, site.folder / path)
    if kind in FLEETING:
        return fail(
            f"{what} {path} is on {kind}: no other node sees it, and what is in it goes with this one",
            "use a folder that the compute nodes share (mostly $HOME, /scratch or /work)",
            "recipe",
        )
    if kind in SHARED or local_storage.is_network(kind):
        return ok(f"{what} {path} ({kind})")
    return warn(
        f"{what} {path} is on {kind}, a disk of this machine's own",
        "the compute nodes must have the same folder, as where this machine serves it: srun ls -d FOLDER",
    )


def seen_by_jobs(site: Site, path: Path, what: str, *, to_write: bool = False) -> Finding:
    """The compute nodes can have it, and a container sees it under its own name."""
    if site.in_container and not is_mounted(site, path, to_write=to_write):
        how = "mounted to be written" if to_write and is_mounted(site, path) else "mounted"
        return fail(
            f"{what} {path} is not {how} in the container, which has the kit, the current folder, HF_HOME, "
            "MINI_R1_RUNS, TMPDIR and MINI_R1_MOUNTS",
            "add it to MINI_R1_MOUNTS in the site file, or use a folder below those",
            "recipe",
        )
    return shared(site, path, what)


def run_directory(site: Site) -> Finding:
    """It can be written, and the nodes have the same."""
    path = site.case.run_dir
    if path is None:
        return skip("neither a recipe, MINI_R1_RUNS nor --run-dir was given")
    written = local_storage.run_directory(site.case)
    if written.status == "fail":
        return written
    return worst([written, seen_by_jobs(site, path, "run directory", to_write=True)])


def model(site: Site) -> Finding:
    """Whole in the cache or in its folder, as a job without a network finds it."""
    if site.case.recipe is None:
        return skip("no recipe")
    name = site.case.recipe.model_name_or_path
    return _input(site, "model", inputs.model(_offline(site)), None if site.case.recipe.built_in else name)


def data(site: Site) -> Finding:
    """In the cache or a file, as a job without a network finds it."""
    if site.case.recipe is None:
        return skip("no recipe")
    name = site.case.recipe.dataset_id_or_path
    return _input(site, "data", inputs.data(_offline(site)), None if name == GENERATED else name)


def _input(site: Site, what: str, found: Finding, name: str | None) -> Finding:
    if found.status == "fail":
        return _assumed(site, found)
    path = expand_user(name, site.environment) if name else None
    if path is not None and path.exists():
        return worst([found, seen_by_jobs(site, path, what)])
    return found


def _offline(site: Site) -> Case:
    """The case with HF_HUB_OFFLINE=1, unless the site file says anything about it."""
    environment = {**site.environment}
    environment["HF_HUB_OFFLINE"] = environment.get("HF_HUB_OFFLINE") or "1"
    return replace(site.case, environment=environment)


def _assumed(site: Site, found: Finding) -> Finding:
    if site.environment.get("HF_HUB_OFFLINE") or "HF_HUB_OFFLINE" not in found.detail:
        return found
    return replace(
        found,
        detail=f"{found.detail} for this check, because compute nodes mostly have no network",
        fix=f"{found.fix}; where they have one: export HF_HUB_OFFLINE=0 in the site file",
    )


def cache(site: Site) -> Finding:
    """The hub's cache is where jobs find it, and has the recipe's tokenizer where that is a repository of its own."""
    recipe = site.case.recipe
    if recipe is None:
        return skip("no recipe")
    on_hub = [part for part in recipe_parts(recipe, site.environment) if part.kind is not None]
    if not on_hub:
        return skip("nothing of this recipe is on the hub")
    folder = hub_cache(site.environment)
    findings = [seen_by_jobs(site, folder, "the hub's cache")]
    offline = _offline(site)
    for part in on_hub:
        if part.part != "tokenizer" or offline.environment["HF_HUB_OFFLINE"] != "1":
            continue
        tokenizer = hub_access.cached_folder(site.environment, part.name, None)
        if tokenizer is None or not (tokenizer / TOKENIZER_FILE).is_file():
            findings.append(
                _assumed(
                    site,
                    fail(
                        f"the tokenizer {part.name} is not in the cache, and HF_HUB_OFFLINE is set",
                        f"check tokenizer_name_or_path, or {inputs.PREFETCH}",
                        "recipe",
                    ),
                )
            )
    return worst(findings)
