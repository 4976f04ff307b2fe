"""What goes into a branch: model and tokenizer, model card, recipe; on main also the logs.

Paths of this machine are not published: the recipe and the evaluations keep their last component, config.json loses the
folder that the model was loaded from, TensorBoard's file names lose the host. A link that leads out of the run is not
followed. Not sent: checkpoints (pickles, and many times the size), completions, the logs of processes.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mini_r1
from mini_r1.console import shown_bytes
from mini_r1.errors import KitError
from mini_r1.hub.hub_access import ADAPTER, CONFIG, MAIN, is_path
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import FOLDER, named_files, with_copies
from mini_r1.recipe.recipe_file import dump_recipe
from mini_r1.run.files import read_jsonl, read_object
from mini_r1.run.manifest import MANIFEST, Saved
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.registry import find_task

RECORD: Final = "mini-r1.json"
"""The file that names the run that a repository belongs to."""
_EVENTS = re.compile(r"(.*tfevents\.\d+)\..+\.(\d+\.\d+)")
"""TensorBoard's file names: time, host, process and a counter."""
_PATH_KEYS = frozenset({"source", "snapshot", "problems_file", "written_to"})
"""Keys of an evaluation that hold paths; any text that begins like one is shortened too."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch: the contents of its files, and what is left out because it is a link that leads out of the run."""

    name: str
    step: int
    files: dict[str, Path | bytes]
    left_out: tuple[str, ...] = ()

    @property
    def card(self) -> str:
        """Return the model card."""
        return self._read("README.md").decode()

    @property
    def size(self) -> int:
        """Return the bytes of all its files."""
        return sum(map(self._size, self.files))

    def files_with(self, token: str) -> list[str]:
        """Return the files that hold a token; weights are only numbers and are not searched."""
        return [n for n in self.files if not n.endswith(".safetensors") and token.encode() in self._read(n)]

    def to_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        values = {"branch": self.name, "step": self.step, "bytes": self.size, "left_out": [*self.left_out]}
        return {**values, "files": [{"name": name, "bytes": self._size(name)} for name in self.files]}

    def lines(self, *, files: bool = False) -> list[str]:
        """Return a line for people, and one for each file on request."""
        line = f"{self.name}: the model of step {self.step}, {len(self.files)} files, {shown_bytes(self.size)}"
        return [line, *(f"  {name}  {shown_bytes(self._size(name))}" for name in self.files if files)]

    def remarks(self) -> list[str]:
        """Return a line for each file that is left out."""
        return [f"left out: {name} is a link that leads out of the run directory" for name in self.left_out]

    def _size(self, name: str) -> int:
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def _read(self, name: str) -> bytes:
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()


@dataclass(frozen=True, slots=True)
class Base:
    """The model that the run began with: hub id (None for one that only this machine has), commit, name for people.

    `licence` is what the hub's card has of `license`, `license_name`, `license_link`.
    """

    name: str | None
    commit: str | None
    shown: str
    licence: dict[str, Any] = field(default_factory=dict)


def base_of(run: RunDir, recipe: Recipe) -> Base:
    """Return the model that a run began with, without its licence."""
    if recipe.built_in:
        return Base(None, None, f"the kit's own {recipe.built_in.name}, warm-started by imitation")
    name = recipe.model_name_or_path
    commit = run.model_commit()
    # A model from the hub has a commit. Seen from another directory, the folder `models/mine` looks like a hub id.
    if commit is None or is_path(name):
        return Base(None, None, f"{Path(name).name}, a folder of the machine that it was trained on")
    return Base(name, commit, name)


def example_of(run: RunDir, recipe: Recipe) -> Any:
    """Return the first problem that the run held out, else the task's example."""
    task = find_task(recipe.task)
    with suppress(DataError, StopIteration):
        return task.parse(next(read_jsonl(run.held_out_file)), run.held_out_file.name)
    return task.example


def refuse_unknown_base(saved: Saved, base: Base) -> None:
    """Raise KitError for an adapter whose base is not on the hub: it could not be loaded."""
    adapter = read_object(saved.path / ADAPTER)
    named = adapter.get("base_model_name_or_path")
    if adapter and (base.name is None or named != base.name):
        raise KitError(
            f"step {saved.step} is an adapter, and its base ({named or 'none is named'}) is not on the hub, so it "
            "could not be loaded: publish the base, and train from its name there"
        )


def public_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe without this machine's folders."""
    changes: dict[str, Any] = {"output_dir": None}
    for key in ("model_name_or_path", "tokenizer_name_or_path", "dataset_id_or_path"):
        value = getattr(recipe, key)
        if isinstance(value, str) and (Path(value).is_absolute() or Path(value).expanduser().exists()):
            changes[key] = Path(value).name
    return with_copies(recipe).model_copy(update=changes)


def record_content(run_id: str, **facts: Any) -> bytes:
    """Return the content of RECORD."""
    return (json.dumps({"run_id": run_id, **facts, "kit": mini_r1.__version__}, indent=2) + "\n").encode()


def fill_branch(run: RunDir, recipe: Recipe, base: Base, saved: Saved, name: str, card: str) -> Branch:
    """Return the branch of a verified snapshot with its model card; `main` also has the logs."""
    own, outside = _recipe_files(run, recipe)
    files: dict[str, Path | bytes] = {
        **_model_files(saved, base),
        "README.md": card.encode(),
        "recipe.yaml": dump_recipe(public_recipe(recipe)).encode(),
        **own,
        RECORD: record_content(run.run_id, step=saved.step),
    }
    if name != MAIN:
        return Branch(name, saved.step, files, outside)
    logs, links = _logs(run)
    return Branch(name, saved.step, files | logs, (*outside, *links))


def _recipe_files(run: RunDir, recipe: Recipe) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the run's copies of the files that its recipe names, without modules; and what is left out."""
    names = [f"{FOLDER}/{name}" for name in named_files(recipe, modules=False)]
    outside = tuple(name for name in names if not _is_inside(run, run.path / name))
    return {name: run.path / name for name in names if name not in outside}, outside


def _is_inside(run: RunDir, path: Path) -> bool:
    return path.resolve().is_relative_to(run.path.resolve())


def _model_files(saved: Saved, base: Base) -> dict[str, Path | bytes]:
    """Return the files of the manifest, without peft's README.md."""
    files: dict[str, Path | bytes] = {name: saved.path / name for name in read_object(saved.path / MANIFEST)["files"]}
    files.pop("README.md", None)
    config = read_object(saved.path / CONFIG)
    if config.get("_name_or_path", base.name) != base.name:  # transformers writes the folder of the model here
        del config["_name_or_path"]
        files[CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files


def _logs(run: RunDir) -> tuple[dict[str, Path | bytes], tuple[str, ...]]:
    """Return the metrics of all attempts as one file, TensorBoard's events and the evaluations; and what is left out.

    They are read now: a run that is training writes to them, and what is sent must stay what was hashed.
    """
    rows = "".join(json.dumps(row) + "\n" for row in read_metrics(run))
    files: dict[str, Path | bytes] = {"logs/metrics.jsonl": rows.encode()} if rows else {}
    outside = []
    for path in [*sorted(run.tensorboard.rglob("*tfevents*")), *sorted(run.evaluation.glob("*.json"))]:
        if not path.is_file():
            continue
        if not _is_inside(run, path):
            # A link in a run that was sent to you may lead to a key of yours.
            outside.append(path.relative_to(run.path).as_posix())
        elif path.suffix == ".json" and path.parent == run.evaluation:
            if values := read_object(path):
                files[f"logs/evaluation/{path.name}"] = (json.dumps(_without_paths(values), indent=2) + "\n").encode()
        else:
            name = path.relative_to(run.tensorboard).with_name(_EVENTS.sub(r"\1.\2", path.name))
            files[f"logs/tensorboard/{name.as_posix()}"] = path.read_bytes()
    return files, tuple(outside)


def _without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    is_path = isinstance(value, str) and (key in _PATH_KEYS or value.startswith(("/", "~/")))
    return Path(value).name if is_path else value
