"""What goes into a branch: the model and its tokenizer, the card, the recipe, on main the logs besides.

Places on this machine stay here: paths in the recipe and the evaluations are told by their last name alone. What is not
sent: checkpoints (pickles, and many times the size), every completion, the logs of processes with their hosts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mini_r1
from mini_r1.errors import KitError
from mini_r1.manifest import MANIFEST, Saved, verify
from mini_r1.publishing.files import Branch, File
from mini_r1.publishing.hub import MAIN, RECORD
from mini_r1.recipe import DEMO_MODEL, Recipe
from mini_r1.recipe_file import dump_recipe
from mini_r1.rundir import RunDir, read_object

ADAPTER = "adapter_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_PLACES = frozenset({"source", "snapshot", "problems_file", "written_to"})
"""Keys of an evaluation's provenance that are paths."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the run began with.

    Args:
        name: hub id, or None for a model that only this machine has, the built-in one included.
        commit: of it on the hub, where it is known.
        shown: for people.
        licence: what the hub says of it: `license`, `license_name`, `license_link`, as far as known.
    """

    name: str | None
    commit: str | None
    shown: str
    licence: dict[str, Any] = field(default_factory=dict)


def base_of(run: RunDir, recipe: Recipe) -> Base:
    """What the run's model is made from."""
    if recipe.model_name_or_path == DEMO_MODEL:
        return Base(None, None, "the kit's built-in demo model, warm-started by imitation")
    name = recipe.model_name_or_path
    if Path(name).expanduser().exists() or not _HUB_ID.fullmatch(name):
        return Base(None, None, f"{Path(name).name}, a folder of the machine that it was trained on")
    attempts = run.read_record().get("attempts") or [{}]
    model = attempts[-1].get("model") if isinstance(attempts[-1], dict) else None
    commit = model.get("revision") if isinstance(model, dict) else None
    return Base(name, commit if isinstance(commit, str) else None, name)


def refuse_unknown_base(saved: Saved, base: Base) -> None:
    """An adapter is worth something only beside its base.

    Raises:
        KitError: the snapshot is an adapter, and others cannot have what it adapts.
    """
    if not (saved.path / ADAPTER).is_file():
        return
    try:
        named = json.loads((saved.path / ADAPTER).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise KitError(f"{saved.path / ADAPTER} cannot be read: the base of this adapter is unknown") from error
    if base.name is None or named != base.name:
        raise KitError(
            f"step {saved.step} is an adapter, and its base ({named or 'none is named'}) is on no hub: nobody else "
            "could load it. Publish the base, and train from its name there"
        )


def model_files(saved: Saved) -> list[File]:
    """The model and its tokenizer, as the manifest has them; peft's own page is left out, the card takes its place.

    Raises:
        KitError: a file is missing, or not as long as it was.
    """
    entries = json.loads((saved.path / MANIFEST).read_text())["files"]
    files = [File(name, saved.path / name, entry["sha256"]) for name, entry in entries.items() if name != "README.md"]
    for file in files:
        path = saved.path / file.name
        if not path.is_file() or path.stat().st_size != entries[file.name]["size"]:
            raise KitError(f"the snapshot {saved.path} is damaged ({file.name}): it is not published")
    return files


def refuse_damaged(run: RunDir, saved: Saved) -> None:
    """Read every byte of a snapshot, before it is sent.

    Raises:
        KitError: it is not what was saved.
    """
    fault = verify(saved, run.run_id)
    if fault is not None:
        raise KitError(f"the snapshot {saved.path} is damaged ({fault}): it is not published")


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without this machine's folders."""
    changes: dict[str, Any] = {"output_dir": None}
    for key in ("model_name_or_path", "tokenizer_name_or_path", "dataset_id_or_path"):
        value = getattr(recipe, key)
        if isinstance(value, str) and (Path(value).is_absolute() or Path(value).expanduser().exists()):
            changes[key] = Path(value).name
    return recipe.model_copy(update=changes)


def branch(run: RunDir, recipe: Recipe, saved: Saved, name: str, card: str) -> Branch:
    """A snapshot's branch, or main with the logs.

    Args:
        run: the run.
        recipe: its recipe.
        saved: the snapshot.
        name: of the branch.
        card: its README.md.

    Raises:
        KitError: the snapshot is damaged.
    """
    record = {"run_id": run.run_id, "step": saved.step, "kit": mini_r1.__version__}
    files = [
        *model_files(saved),
        File("README.md", card.encode()),
        File("recipe.yaml", dump_recipe(public_recipe(recipe)).encode()),
        File(RECORD, (json.dumps(record, indent=2) + "\n").encode()),
        *(logs(run) if name == MAIN else ()),
    ]
    return Branch(name, saved.step, tuple(files))


def logs(run: RunDir) -> Iterator[File]:
    """Metrics of all attempts as one file, TensorBoard's events, the evaluations."""
    rows = "".join(json.dumps(row) + "\n" for row in run.metrics())
    if rows:
        yield File("logs/metrics.jsonl", rows.encode())
    for path in sorted(run.tensorboard.rglob("*tfevents*")):
        if path.is_file():
            # Read now: a run that goes on writes to it, and what is sent has to stay what was hashed.
            yield File(f"logs/tensorboard/{path.relative_to(run.tensorboard).as_posix()}", path.read_bytes())
    for path in sorted(run.evaluation.glob("*.json")):
        values = read_object(path)
        if values:
            yield File(f"logs/evaluation/{path.name}", (json.dumps(_without_places(values), indent=2) + "\n").encode())


def _without_places(values: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values.get("provenance"), dict):
        return values
    shown: dict[str, Any] = {
        key: Path(value).name if key in _PLACES and isinstance(value, str) else value
        for key, value in values["provenance"].items()
    }
    if isinstance(shown.get("model"), dict):
        shown["model"] = {k: v for k, v in shown["model"].items() if k not in ("name", "source", "path")}
    return {**values, "provenance": shown}
