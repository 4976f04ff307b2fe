"""One model to measure: on which problems, how, and where the result goes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mini_r1.errors import KitError
from mini_r1.generation.model import StartingPoint
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.hub.hub_access import refuse_no_model
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import read_object
from mini_r1.run.manifest import MANIFEST, Saved, verify
from mini_r1.run.reader import read_completions
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.data_errors import DataError
from mini_r1.tasks.prompt_file import describe_style
from mini_r1.tasks.registry import DEFAULT_TASK, AnyTask, find_task
from mini_r1.tasks.task import TaskProblem
from mini_r1.tasks.task_data import load_data

FORMAT = 3
"""Format of a result; a file with another one is measured again."""
OLDER_KEYS: Final[dict[str, Any]] = {"top_p": 1.0, "top_k": None, "stop": [], "task": DEFAULT_TASK, "columns": {}}
"""Settings of results that are older than these keys."""


@dataclass(frozen=True, slots=True)
class Source:
    """One model to be measured. The defaults are the original's, for a model without a recipe."""

    model: str
    problems_file: Path
    task: AnyTask
    samples: int = 4
    style: str = "script"
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=1024, temperature=0.9))
    """How the samples are drawn; `samples` is their number."""
    seed: int = 42
    selection_seed: int = 42
    """Random seed of the shuffle that a limit takes its problems from: runs that differ only in `seed` share them."""
    revision: str | None = None
    tokenizer: str = ""  # directory or hub id of the tokenizer, if not the model's
    generator: Mapping[str, Any] | None = None  # the recipe's, which the solvers follow
    run: RunDir | None = None
    step: int | None = None
    saved: Saved | None = None
    weights: str = ""  # hash of a snapshot's manifest: a resumed run saves a step a second time
    own_problems: bool = False  # the problems are a file of the user and not the run's held-out part
    columns: Mapping[str, str] = field(default_factory=dict)
    """Where a file of the user has the fields of a problem, unless it has them under their own names."""

    def settings(self, problems: Problems) -> dict[str, Any]:
        """Return everything that a result depends on besides the machine."""
        return {
            "format": FORMAT,
            "task": self.task.name,
            "weights": self.weights or f"{self.model}@{self.revision}",
            "problems_sha256": problems.sha256,
            "columns": dict(self.columns) if self.own_problems else {},
            "problems": len(problems.asked),
            "samples": self.samples,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k,
            "stop": list(self.sampling.stop),
            "max_new_tokens": self.sampling.max_new_tokens,
            "prompt_style": describe_style(self.style),
            "seed": self.seed,
            **self.task.solver_settings(self.generator),
        }

    def result_file(self, problems: Problems) -> Path | None:
        """Return where the result of a run's snapshot goes, named by its problems; None for a model."""
        if self.run is None or self.step is None:
            return None
        name = f"step-{self.step}"
        if self.own_problems:
            name += f"-{problems.sha256[:8]}"
        if problems.limited:
            name += f"-limit-{problems.limit}"
        return self.run.evaluation / f"{name}.json"

    def read_result(self, problems: Problems) -> dict[str, Any] | None:
        """Return the result that is written, with any settings; None when there is none that can be read."""
        path = self.result_file(problems)
        value = read_object(path) if path is not None else {}
        if not isinstance(value.get("provenance"), dict):
            return None
        value["provenance"] = {**OLDER_KEYS, **value["provenance"]}
        return value

    def read_same_result(self, problems: Problems) -> dict[str, Any] | None:
        """Return the result that is written, if it has the same weights, problems and settings."""
        found = self.read_result(problems)
        if found is None or not self.settings(problems).items() <= found["provenance"].items():
            return None
        found["provenance"]["written_to"] = str(self.result_file(problems))  # the run may have been moved
        return found

    def refuse_change(self) -> None:
        """Raise a KitError if a resumed run replaced the snapshot, or deleted it for its space, since it was listed."""
        if self.saved is not None and _manifest_hash(self.saved) != self.weights:
            raise KitError(
                f"the snapshot {self.saved.path} was deleted or replaced meanwhile: the same command measures what is "
                "there now"
            )

    def verify(self) -> None:
        """Raise a KitError unless a snapshot's files are those that were saved."""
        if self.saved is None or self.run is None:
            return
        error = verify(self.saved, self.run.run_id)
        self.refuse_change()
        if error is not None:
            raise KitError(f"the snapshot {self.saved.path} is damaged ({error}): choose another one with --step")


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems to ask, and their origin."""

    asked: list[Any]
    available: int
    sha256: str
    limit: int | None
    selection_seed: int
    trained_on: int = 0  # number of them that the run has trained on: possible for a user's file only

    @property
    def limited(self) -> bool:
        """True if some were left out."""
        return len(self.asked) < self.available

    @property
    def selection(self) -> str:
        """Description of how they were chosen."""
        text = f"all {self.available} problems"
        if self.limited:
            text = f"first {len(self.asked)} of {self.available} problems by a shuffle with seed {self.selection_seed}"
        return f"{text}, {self.trained_on} of them trained on" if self.trained_on else text


def model_source(
    source: str, problems_file: Path | None, step: int | None, task: AnyTask, columns: Mapping[str, str]
) -> Source:
    """Return a model directory or hub id, or raise a KitError: nothing to evaluate, or no problems to do it on."""
    path = Path(source)
    refuse_no_model(source, has_problems=problems_file is not None)
    if step is not None:
        raise KitError(f"--step chooses a snapshot of a run, and {source} is not a run directory")
    if problems_file is None:
        raise KitError(f"{source} is a model and not a run, so it has no held-out part: name a file with --problems")
    name = str(path) if path.exists() else source
    return Source(name, problems_file, task, style=next(iter(task.prompts)), own_problems=True, columns=columns)


def run_sources(run: RunDir, problems_file: Path | None, columns: Mapping[str, str]) -> list[Source]:
    """Return the complete snapshots of a run, newest first; a KitError if there is none, or nothing was held out."""
    recipe = load_recipe(run.recipe_file)
    if problems_file is None and not recipe.holds_out:
        raise KitError(f"{run.path} held no problems out (test_fraction 0): name a file with --problems")
    complete = run.require_snapshots()
    base = Source(
        "",
        problems_file or run.held_out_file,
        style=recipe.prompt_style,
        sampling=SamplingConfig.from_recipe(recipe),
        seed=recipe.seed,
        selection_seed=recipe.dataset_seed,
        task=find_task(recipe.task),
        generator=recipe.generator.model_dump() if recipe.generator else None,
        run=run,
        own_problems=problems_file is not None,
        columns=columns or recipe.dataset_columns,
    )
    found = [
        replace(base, model=str(saved.path), saved=saved, step=saved.step, weights=weights)
        for saved in complete
        if (weights := _manifest_hash(saved)) is not None  # else deleted since it was listed
    ]
    if not found:
        raise KitError(f"the snapshots of {run.path} are being deleted: run the command again")
    return found


def find_step(targets: list[Source], step: int | None) -> Source:
    """Return the model of a step (None: the newest snapshot), or raise a KitError that lists the steps."""
    for source in targets:
        if source.step == step or (step is None and source.step != 0):
            return source
    steps = ", ".join(map(str, sorted(source.step or 0 for source in targets)))
    run = targets[0].run
    raise KitError(f"{run.path if run else ''} has no complete snapshot of step {step}; there are: {steps}")


def untrained_source(snapshot: Source, start: StartingPoint) -> Source | None:
    """Return the run's starting point as step 0, measured like this snapshot; None when it is not known."""
    if start.source is None:
        return None
    # The recipe may take the tokenizer from elsewhere, but every snapshot has it.
    return replace(
        snapshot, model=start.source, revision=start.revision, tokenizer=snapshot.model, saved=None, weights="", step=0
    )


def read_problems(source: Source, limit: int | None) -> Problems:
    """Read the problems in a seeded order; a DataError if the file is missing or wrong."""
    if not source.problems_file.exists():  # else a name like owner/name would be looked up on the hub
        raise DataError(f"{source.problems_file}: no such file")
    data = source.task.fields.mapped(source.columns).own_names_first(
        lambda columns: load_data(
            source.task,
            str(source.problems_file),
            revision=None,
            rows=None,
            seed=source.selection_seed,
            test_fraction=0.0,
            split_by="key",
            generator=None,
            prefer="test",
            columns=columns,
        )
    )
    asked = data.train[:limit]
    trained_on = 0
    if source.run is not None and source.own_problems:
        trained_on = _count_trained_on(source.task, source.run, asked)
    digest = str(data.provenance["sha256"])
    return Problems(asked, len(data.train), digest, limit, source.selection_seed, trained_on)


def _count_trained_on(task: AnyTask, run: RunDir, problems: Sequence[TaskProblem]) -> int:
    """Count the problems, in any order of their numbers, that are in the run's completions."""
    seen = set()
    for row in read_completions(run):
        with suppress(DataError):
            seen.add(task.parse(row, "").key)
    return sum(problem.key in seen for problem in problems)


def _manifest_hash(saved: Saved) -> str | None:
    """Return the hash of the manifest; None when it can't be read."""
    try:
        return hashlib.sha256((saved.path / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None
