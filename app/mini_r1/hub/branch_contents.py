"""What goes into a branch: the model and its tokenizer, the card, the recipe, on main the logs besides.

Places on this machine stay here: paths in the recipe and the evaluations are told by their last name alone, the model's
configuration does not say where it was loaded from, and a file of TensorBoard's has no host in its name. A link that
leads out of the run is not followed. What is not sent: checkpoints (pickles, and many times the size), every
completion, the logs of processes with their hosts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.hub.branch_files import Branch, File
from mini_r1.hub.upload import MAIN, RECORD, record_of
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import dump_recipe
from mini_r1.run.files import read_jsonl, read_object
from mini_r1.run.manifest import MANIFEST, Saved, verify
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.problem import DataError, Problem, parse_problem

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
EXAMPLE = Problem((44, 19, 35), 98)
"""The first problem of the hub's data set."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_EVENTS = re.compile(r"(.*tfevents\.\d+)\..+\.(\d+\.\d+)")
"""TensorBoard's names: when, the host, the process and a count."""
_PLACES = frozenset({"source", "snapshot", "problems_file", "written_to"})
"""Keys of an evaluation that are paths; other texts that begin as one are taken for one too."""


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
    if recipe.built_in:
        return Base(None, None, f"the kit's own {recipe.built_in.name}, warm-started by imitation")
    name = recipe.model_name_or_path
    commit = run.model_commit()
    # What came from the hub has a commit. A folder `models/mine` looks like a hub's name from anywhere else.
    if commit is None or not is_on_hub(name):
        return Base(None, None, f"{Path(name).name}, a folder of the machine that it was trained on")
    return Base(name, commit, name)


def is_on_hub(model: str) -> bool:
    """Whether a recipe's name of a model is one of the hub's, and no folder or the built-in model."""
    return not Path(model).expanduser().exists() and _HUB_ID.fullmatch(model) is not None


def example_of(run: RunDir) -> Problem:
    """A problem of the kind that the run was trained on: the first that it held out."""
    for row in read_jsonl(run.held_out_file):
        try:
            return parse_problem(row, run.held_out_file.name)
        except DataError:
            break
    return EXAMPLE


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


def model_files(saved: Saved, base: Base) -> list[File]:
    """The model and its tokenizer, as the manifest has them; peft's own page is left out, the card takes its place.

    Raises:
        KitError: a file is missing, or not as long as it was.
    """
    entries = json.loads((saved.path / MANIFEST).read_text())["files"]
    files = []
    for name, entry in entries.items():
        path = saved.path / name
        if not path.is_file() or path.stat().st_size != entry["size"]:
            raise _damaged(saved, name)
        if name == CONFIG:
            files.append(_config(path, entry["sha256"], base))
        elif name != "README.md":
            files.append(File(name, path, entry["sha256"], of_snapshot=True))
    return files


def _config(path: Path, sha256: str, base: Base) -> File:
    """transformers writes where a model was loaded from, and overwrites that when it loads one."""
    values = read_object(path)
    if values.get("_name_or_path", base.name) == base.name:
        return File(CONFIG, path, sha256, of_snapshot=True)
    del values["_name_or_path"]
    return File(CONFIG, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode(), of_snapshot=True)


def refuse_damaged(run: RunDir, saved: Saved) -> None:
    """Read every byte of a snapshot, before it is sent.

    Raises:
        KitError: it is not what was saved.
    """
    fault = verify(saved, run.run_id)
    if fault is not None:
        raise _damaged(saved, fault)


def _damaged(saved: Saved, fault: str) -> KitError:
    return KitError(
        f"the snapshot {saved.path} is damaged ({fault}): it is not published; delete its folder to publish the others"
    )


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without this machine's folders."""
    changes: dict[str, Any] = {"output_dir": None}
    for key in ("model_name_or_path", "tokenizer_name_or_path", "dataset_id_or_path"):
        value = getattr(recipe, key)
        if isinstance(value, str) and (Path(value).is_absolute() or Path(value).expanduser().exists()):
            changes[key] = Path(value).name
    return recipe.model_copy(update=changes)


def branch(run: RunDir, recipe: Recipe, base: Base, saved: Saved, name: str, card: str) -> Branch:
    """A snapshot's branch, or main with the logs.

    Args:
        run: the run.
        recipe: its recipe.
        base: what its model is made from.
        saved: the snapshot.
        name: of the branch.
        card: its README.md.

    Raises:
        KitError: the snapshot is damaged.
    """
    files = [
        *model_files(saved, base),
        File("README.md", card.encode()),
        File("recipe.yaml", dump_recipe(public_recipe(recipe)).encode()),
        File(RECORD, record_of(run.run_id, step=saved.step)),
        *(logs(run) if name == MAIN else ()),
    ]
    return Branch(name, saved.step, tuple(files), tuple(_strays(run)) if name == MAIN else ())


def logs(run: RunDir) -> Iterator[File]:
    """Metrics of all attempts as one file, TensorBoard's events, the evaluations."""
    rows = "".join(json.dumps(row) + "\n" for row in read_metrics(run))
    if rows:
        yield File("logs/metrics.jsonl", rows.encode())
    for path in _events(run):
        if _is_inside(path, run):
            # Read now: a run that goes on writes to it, and what is sent has to stay what was hashed.
            yield File(f"logs/tensorboard/{_without_host(path.relative_to(run.tensorboard))}", path.read_bytes())
    for path in _evaluations(run):
        values = read_object(path) if _is_inside(path, run) else {}
        if values:
            yield File(f"logs/evaluation/{path.name}", (json.dumps(_without_places(values), indent=2) + "\n").encode())


def _events(run: RunDir) -> list[Path]:
    return [path for path in sorted(run.tensorboard.rglob("*tfevents*")) if path.is_file()]


def _evaluations(run: RunDir) -> list[Path]:
    return [path for path in sorted(run.evaluation.glob("*.json")) if path.is_file()]


def _is_inside(path: Path, run: RunDir) -> bool:
    """Whether it is the run's own: a link in a run that was sent to you may lead to a key of yours."""
    return path.resolve().is_relative_to(run.path.resolve())


def _strays(run: RunDir) -> Iterator[str]:
    """What would be sent, but that it lies elsewhere."""
    for path in (*_events(run), *_evaluations(run)):
        if not _is_inside(path, run):
            yield path.relative_to(run.path).as_posix()


def _without_host(path: Path) -> str:
    return path.with_name(_EVENTS.sub(r"\1.\2", path.name)).as_posix()


def _without_places(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_places(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    is_place = isinstance(value, str) and (key in _PLACES or value.startswith(("/", "~/")))
    return Path(value).name if is_place else value
