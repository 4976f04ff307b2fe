"""What is measured, on which problems, how, and where the result goes: told before any model is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mini_r1.errors import KitError
from mini_r1.evaluation.search import Game
from mini_r1.generation.starting_point import StartingPoint
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.files import read_object
from mini_r1.run.manifest import MANIFEST, Saved, verify
from mini_r1.run.reader import read_completions
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown import task

FORMAT = 3
"""Of what is written; raised when figures are added, so that a file without them is made again."""

# For a model that brings no recipe: the original's own.
DEFAULT_STYLE = "script"
DEFAULT_TEMPERATURE = 0.9
DEFAULT_MAX_NEW_TOKENS = 1024
DEFAULT_SEED = 42
DEFAULT_SAMPLES = 4
MOST_SAMPLES = 10_000
"""For each problem: more than any figure needs, and few enough to hold."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user may say of how to measure; None is the run's recipe, else the original's values."""

    samples: int | None = None
    """None is what the run was measured with before, else DEFAULT_SAMPLES."""
    limit: int | None = None
    prompt_style: str | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            KitError: naming it.
        """
        if self.samples is not None and self.samples < 1:
            raise KitError(f"--samples must be at least 1, found {self.samples}")
        if self.samples is not None and self.samples > MOST_SAMPLES:
            raise KitError(f"--samples must be at most {MOST_SAMPLES:,}, found {self.samples:,}; pass@k ends at k = 64")
        if self.limit is not None and self.limit < 1:
            raise KitError(f"--limit must be at least 1, found {self.limit}")


@dataclass(frozen=True, slots=True)
class Source:
    """One model to be measured."""

    model: str
    problems_file: Path
    samples: int = DEFAULT_SAMPLES
    style: str = DEFAULT_STYLE
    temperature: float = DEFAULT_TEMPERATURE
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    seed: int = DEFAULT_SEED
    selection_seed: int = DEFAULT_SEED
    """Of the shuffle that a limit takes its problems from: runs that differ in `seed` alone get the same ones."""
    revision: str | None = None
    tokenizer: str = ""
    """Where the tokenizer is, if not with the model."""
    game: Game = field(default_factory=Game)
    run: RunDir | None = None
    step: int | None = None
    saved: Saved | None = None
    weights: str = ""
    """What tells a snapshot's weights from others, its manifest's hash: a resumed run saves a step a second time."""
    own_problems: bool = False
    """The problems are a file of the user's and not the run's held-out part."""

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are those of an adapter."""
        return (Path(self.model) / "adapter_config.json").is_file()

    @property
    def identity(self) -> str:
        """What tells these weights from others."""
        return self.weights or f"{self.model}@{self.revision}"

    def refuse_change(self) -> None:
        """A snapshot may be saved anew by a resumed run, or deleted to make room, while it is about to be measured.

        Raises:
            KitError: it is another one than when it was listed.
        """
        if self.saved is not None and _manifest_hash(self.saved) != self.weights:
            raise KitError(
                f"the snapshot {self.saved.path} was deleted or saved anew meanwhile: the same command measures what "
                "is there now"
            )

    def verify(self) -> None:
        """Its files are those that were saved.

        Raises:
            KitError: they are not.
        """
        if self.saved is None or self.run is None:
            return
        fault = verify(self.saved, self.run.run_id)
        self.refuse_change()
        if fault is not None:
            raise KitError(f"the snapshot {self.saved.path} is damaged ({fault}): choose another one with --step")


@dataclass(frozen=True, slots=True)
class Problems:
    """What is asked, and where it is from."""

    asked: list[task.Problem]
    available: int
    sha256: str
    limit: int | None
    selection_seed: int
    trained_on: int = 0
    """How many of them the run has trained on: none of its held-out part, maybe some of a user's file."""

    @property
    def limited(self) -> bool:
        """Whether some were left out."""
        return len(self.asked) < self.available

    @property
    def words(self) -> str:
        """How they were chosen."""
        said = f"all {self.available} problems"
        if self.limited:
            said = f"first {len(self.asked)} of {self.available} problems by a shuffle with seed {self.selection_seed}"
        return f"{said}, {self.trained_on} of them trained on" if self.trained_on else said


def settings(source: Source, problems: Problems) -> dict[str, Any]:
    """Everything that a result depends on besides the machine: a file with the same is not made again."""
    return {
        "format": FORMAT,
        "weights": source.identity,
        "problems_sha256": problems.sha256,
        "problems": len(problems.asked),
        "samples": source.samples,
        "temperature": source.temperature,
        "max_new_tokens": source.max_new_tokens,
        "prompt_style": source.style,
        "seed": source.seed,
        "random_solver": asdict(source.game),
    }


def result_file(source: Source, problems: Problems) -> Path | None:
    """Where the result of a run's snapshot goes; None of a model, which has no place for one.

    The name tells the problems: `step-N.json` is the run's held-out part, `step-N-HASH.json` another file with that
    SHA-256, and `-limit-M` is added for M problems only, so that none of these overwrites the other.
    """
    if source.run is None or source.step is None:
        return None
    name = f"step-{source.step}"
    if source.own_problems:
        name += f"-{problems.sha256[:8]}"
    if problems.limited:
        name += f"-limit-{problems.limit}"
    return source.run.evaluation / f"{name}.json"


def read_result(path: Path | None) -> dict[str, Any] | None:
    """A result that was written before; None when there is none that can be read."""
    if path is None:
        return None
    value = read_object(path)
    return value if isinstance(value.get("provenance"), dict) else None


def samples_before(targets: Iterable[Source], problems: Problems) -> int | None:
    """The most samples that one of these was measured with: fewer would replace a result that cost more."""
    found = [(read_result(result_file(target, problems)) or {}).get("samples") for target in targets]
    return max((n for n in found if type(n) is int and 0 < n <= MOST_SAMPLES), default=None)


def of_model(source: str, problems_file: Path | None, step: int | None, wish: Wish) -> Source:
    """A model directory or hub id.

    Raises:
        KitError: there is nothing to evaluate, or nothing to evaluate it on.
    """
    path = Path(source).expanduser()
    if not path.is_dir() and (path.exists() or not _HUB_ID.fullmatch(source)):
        raise KitError(f"there is no directory {source}: name a run, a model directory or a model's id on the hub")
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise KitError(
            f"{source} holds neither a run (no recipe.yaml) nor a model or adapter (no config.json, "
            "no adapter_config.json)"
        )
    if step is not None:
        raise KitError(f"--step chooses a snapshot of a run, and {source} is not a run directory")
    if problems_file is None and not path.is_dir():
        raise KitError(f"there is no directory {source}; if it is a model on the hub, name a file with --problems")
    if problems_file is None:
        raise KitError(f"{source} is a model and not a run, so it has no held-out part: name a file with --problems")
    name = str(path) if path.exists() else source
    return _with(wish, Source(name, problems_file, own_problems=True))


def of_run(run: RunDir, problems_file: Path | None, wish: Wish) -> list[Source]:
    """The complete snapshots of a run, newest first.

    Raises:
        KitError: there is none, or nothing was held out.
    """
    recipe = load_recipe(run.recipe_file)
    if problems_file is None and recipe.test_fraction == 0:
        raise KitError(f"{run.path} held no problems out (test_fraction 0): name a file with --problems")
    complete = run.require_snapshots()
    rule = recipe.generator
    game = Game(rule.operators, rule.max_intermediate) if rule else Game()
    base = Source(
        "",
        problems_file or run.held_out_file,
        style=recipe.prompt_style,
        temperature=recipe.temperature,
        max_new_tokens=recipe.max_completion_length,
        seed=recipe.seed,
        selection_seed=recipe.dataset_seed,
        game=game,
        run=run,
        own_problems=problems_file is not None,
    )
    base = _with(wish, base)
    listed = [(saved, _manifest_hash(saved)) for saved in complete]
    found = [
        replace(base, model=str(saved.path), saved=saved, step=saved.step, weights=weights)
        for saved, weights in listed
        if weights is not None  # else gone since it was listed
    ]
    if not found:
        raise KitError(f"the snapshots of {run.path} are being deleted: call this again")
    return found


def at_step(snapshots: list[Source], step: int | None) -> Source:
    """The snapshot of a step; None is the newest.

    Raises:
        KitError: there is none.
    """
    for source in snapshots:
        if step in (None, source.step):
            return source
    steps = ", ".join(str(source.step) for source in reversed(snapshots))
    run = snapshots[0].run
    raise KitError(f"{run.path if run else ''} has no complete snapshot of step {step}; there are: {steps}")


def untrained(snapshot: Source, start: StartingPoint) -> Source | None:
    """The run's starting point as step 0, measured like this snapshot; None where it is not known."""
    if start.source is None:
        return None
    # The run's own tokenizer, which a recipe may take from elsewhere, is with every snapshot.
    return replace(
        snapshot, model=start.source, revision=start.revision, tokenizer=snapshot.model, saved=None, weights="", step=0
    )


def read_problems(source: Source, limit: int | None) -> Problems:
    """The problems in a seeded order.

    Raises:
        DataError: the file is missing or wrong.
    """
    if not source.problems_file.exists():  # else a name like owner/name would be looked for on the hub
        raise task.DataError(f"{source.problems_file}: no such file")
    data = task.load_data(
        str(source.problems_file),
        revision=None,
        rows=None,
        seed=source.selection_seed,
        test_fraction=0.0,
        split_by="key",
        generator=None,
    )
    digest = str(data.provenance["sha256"])
    asked = data.train[:limit]
    trained_on = _trained_on(source.run, asked) if source.run is not None and source.own_problems else 0
    return Problems(asked, len(data.train), digest, limit, source.selection_seed, trained_on)


def _trained_on(run: RunDir, problems: Sequence[task.Problem]) -> int:
    """How many of the problems, the order of their numbers aside, stand in the run's completions."""
    wanted = {problem.key for problem in problems}
    seen = set()
    for row in read_completions(run):
        nums, target = row.get("nums"), row.get("target")
        if isinstance(nums, list) and type(target) is int and all(type(n) is int for n in nums):
            seen.add((tuple(sorted(nums)), target))
    return sum(problem.key in seen for problem in problems) if wanted & seen else 0


def _manifest_hash(saved: Saved) -> str | None:
    """None: there is none that can be read."""
    try:
        return hashlib.sha256((saved.path / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _with(wish: Wish, source: Source) -> Source:
    return replace(
        source,
        samples=source.samples if wish.samples is None else wish.samples,
        style=wish.prompt_style or source.style,
        temperature=source.temperature if wish.temperature is None else wish.temperature,
        max_new_tokens=source.max_new_tokens if wish.max_new_tokens is None else wish.max_new_tokens,
        seed=source.seed if wish.seed is None else wish.seed,
    )
