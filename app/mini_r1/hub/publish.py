"""`mini-r1 publish`: what is to be sent, shown or sent. A run that sends its snapshots as it trains uses it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_r1.console import shown_bytes
from mini_r1.errors import KitError
from mini_r1.hub import branch_contents, card_figures
from mini_r1.hub.branch_contents import ADAPTER, Base
from mini_r1.hub.branch_files import Branch
from mini_r1.hub.model_card import card
from mini_r1.hub.upload import MAIN, TOKENLESS, Repository, Say, base_facts, find_token, is_offline, refuse_name
from mini_r1.hub.upload_errors import OFFLINE
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.manifest import Saved
from mini_r1.run.run_dir import RunDir, open_run


@dataclass(frozen=True, slots=True)
class Plan:
    """What a publication is to send.

    Args:
        repo: where to.
        branches: in the order in which they are sent, main last.
        why: why main has the snapshot that it has.
        card: main's.
    """

    repo: str
    branches: tuple[Branch, ...]
    why: str
    card: str

    @property
    def step(self) -> int:
        """Of main's snapshot."""
        return self.branches[-1].step

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        branches = [branch.to_dict() for branch in self.branches]
        return {"repo": self.repo, "step": self.step, "why": self.why, "branches": branches, "card": self.card}

    def lines(self) -> list[str]:
        """For people: what would be sent."""
        lines = [branch.line() for branch in self.branches]
        # main has a branch's very files: the hub stores them once.
        stored = sum(branch.size for branch in self.branches[:-1])
        main = self.branches[-1]
        lines += [f"  {file.name}  {shown_bytes(file.size)}" for file in main.files]
        lines += main.remarks()
        return [*lines, f"in all {shown_bytes(stored)}; main's weights are its branch's, and stored once"]


class Publication:
    """A run as a repository of the hub will hold it.

    Args:
        run: the run.
        repo: `owner/name`.
        licence: of its base, as the hub says it; see `hub.base_facts`.

    Raises:
        KitError: the recipe cannot be read.
    """

    def __init__(self, run: RunDir, repo: str, licence: Callable[[str], dict[str, Any]]) -> None:
        self._run = run
        self._repo = repo
        self.recipe: Recipe = load_recipe(run.recipe_file)
        base = branch_contents.base_of(run, self.recipe)
        self._base: Base = replace(base, licence=licence(base.name)) if base.name else base

    def branch(
        self, saved: Saved, name: str, steps: Sequence[int] = (), why: str = "", *, is_best: bool = False
    ) -> tuple[Branch, str]:
        """A branch and its card; of main also the steps that have a branch, and why it has this snapshot.

        Raises:
            KitError: the snapshot is damaged, or an adapter of an unknown base.
        """
        branch_contents.refuse_unknown_base(saved, self._base)
        text = card(
            repo=self._repo,
            step=saved.step,
            is_adapter=(saved.path / ADAPTER).is_file(),
            recipe=self.recipe,
            base=self._base,
            record=self._run.read_record(),
            figure=card_figures.of_step(self._run, saved.step),
            branches=steps,
            example=branch_contents.example_of(self._run),
            why=why,
            is_best=is_best,
        )
        return branch_contents.branch(self._run, self.recipe, self._base, saved, name, text), text


def plan(run: RunDir, repo: str, wanted: str | None, token: str | None) -> Plan:
    """What `mini-r1 publish` sends.

    Args:
        run: the run.
        repo: where to.
        wanted: None: every snapshot as a branch, and on main the best; else `BEST` or a step, which goes alone.
        token: to ask the hub for the licence of a base that not everybody may see.

    Raises:
        KitError: there is no such snapshot, it is not complete or damaged, or an adapter of an unknown base.
    """
    saved = {each.step: each for each in run.require_snapshots()}
    steps = list(saved)
    known = card_figures.measured(run, steps)
    best = card_figures.best(run, steps)
    by_figures = best is not None if wanted is None else wanted.upper() == "BEST"
    unasked = max(steps) if best is None else best.step
    step = unasked if wanted is None else card_figures.chosen_step(run, wanted, steps)
    sent = sorted(steps) if wanted is None else [step]
    why = f" of {max(steps)}"
    if by_figures and best is not None:
        many = f"the highest held-out success of the {len(known)} snapshots measured"
        why += f", {many if len(known) > 1 else 'the only snapshot measured'}, by {best.source}"
    elif wanted is None:
        why += ", the newest: no held-out success was measured to choose by"
    is_best = by_figures and len(known) > 1
    publication = Publication(run, repo, lambda name: {} if is_offline() else base_facts(name, token))
    branches = [publication.branch(saved[number], f"step-{number}")[0] for number in sent]
    main, text = publication.branch(saved[step], MAIN, sent, why, is_best=is_best)
    return Plan(repo, (*branches, main), why.strip(" ,"), text)


@dataclass(frozen=True, slots=True)
class Published:
    """A publication that was sent."""

    plan: Plan
    address: str
    private: bool
    sent: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For --json; `sent` are the branches that were not there yet."""
        return {**self.plan.to_dict(), "address": self.address, "private": self.private, "sent": list(self.sent)}

    def line(self) -> str:
        """For people."""
        kind = "private" if self.private else "public"
        said = f"sent {', '.join(self.sent)}" if self.sent else "everything was there already"
        return f"{self.address} ({kind}): {said}; main has step {self.plan.step}"


def dry_run(path: Path, repo: str, wanted: str | None, say: Say) -> Plan:
    """What `publish` would send; nothing is asked of the hub but the licence of the base, if it can be reached.

    Raises:
        KitError: as `publish`, for what the run or the arguments are at fault.
    """
    run, token = _known(path), find_token()
    refuse_name(repo)
    made = plan(run, repo, wanted, token)
    steps = {branch.step for branch in made.branches}
    for saved in run.complete_snapshots():
        if saved.step in steps:
            branch_contents.refuse_damaged(run, saved)
    say("nothing was sent" + ("" if token else f"; {TOKENLESS}"))
    return made


def publish(
    path: Path,
    repo: str,
    wanted: str | None,
    *,
    public: bool,
    say: Say,
    bars: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Published:
    """Send a run's snapshots to the hub; what is there is not sent again.

    Args:
        path: the run directory.
        repo: `owner/name`, or `name` in the token's own space.
        wanted: see `plan`.
        public: make a new repository public; without it a public one is refused.
        say: takes a line of progress.
        bars: let huggingface_hub draw its bars.
        sleep: waits between two tries.

    Raises:
        KitError: 78 where the run, the token or the name is at fault, 150 where the hub or the network are.
    """
    run = _known(path)
    refuse_name(repo)
    token = find_token()
    if token is None:
        raise KitError(TOKENLESS)
    if is_offline():
        raise KitError(OFFLINE)
    plan(run, repo, wanted, token)  # what cannot work is told before anything is made on the hub
    repository = Repository(repo, token, say, bars=bars, sleep=sleep)
    private = repository.open(run.run_id, private=not public)
    if public and private:
        say(f"{repository.name} was private already and stays so: make it public on its page")
    made = plan(run, repository.name, wanted, token)
    return Published(made, repository.address, private, send(run, repository, made.branches, say))


def _known(path: Path) -> RunDir:
    """An existing run that can be told from others.

    Raises:
        KitError: there is none, or its run.json does not say which it is.
    """
    run = open_run(path)
    if not run.run_id:
        raise KitError(f"{run.run_file} is missing or cannot be read: it is not known which run this is")
    return run


def send(run: RunDir, repository: Repository, branches: Sequence[Branch], say: Say) -> tuple[str, ...]:
    """Send what the hub does not have of these branches; the names of those that changed.

    Raises:
        KitError: a snapshot is damaged, the hub refuses it (78) or fails again and again (150).
    """
    saved = {each.step: each for each in run.complete_snapshots()}
    existing, sent, read = repository.branches(), [], set[int]()
    for branch in branches:
        missing = repository.missing(branch, existing)
        if not missing:
            say(f"{branch.name}: there already")
            continue
        if any(file.of_snapshot for file in missing) and branch.step in saved and branch.step not in read:
            branch_contents.refuse_damaged(run, saved[branch.step])
            read.add(branch.step)
        for remark in branch.remarks():
            say(remark)
        repository.send(branch, missing, existing)
        sent.append(branch.name)
    return tuple(sent)


def default_name(run: RunDir, recipe: Recipe) -> str:
    """The repository of a run that names none: the directory's name, in the token's own space."""
    return recipe.hub_model_id or run.path.absolute().name
