"""`mini-r1 publish`: what a run's repository should hold, shown or sent. Pushing while a run trains uses it too."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_r1.console import shown_bytes
from mini_r1.errors import KitError
from mini_r1.hub import branch_contents, card_figures, upload
from mini_r1.hub.branch_contents import Branch
from mini_r1.hub.card_figures import CURVE
from mini_r1.hub.hub_access import ADAPTER, MAIN
from mini_r1.hub.hub_errors import hub_error
from mini_r1.hub.model_card import card
from mini_r1.hub.upload import Report, Repository
from mini_r1.machine.paths import is_offline
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.manifest import Saved, verify
from mini_r1.run.run_dir import RunDir, open_run


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What a publication sends: branches in their order, main last, and why main has its snapshot.

    Once it was sent, also where to, and the names of the branches that changed.
    """

    repo: str
    branches: tuple[Branch, ...]
    why: str
    address: str | None = None
    private: bool | None = None
    sent: tuple[str, ...] = ()

    @property
    def main(self) -> Branch:
        """Return main."""
        return self.branches[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        values = {name: getattr(self, name) for name in ("repo", "why", "address", "private", "sent")}
        branches = [branch.to_dict() for branch in self.branches]
        return {**values, "step": self.main.step, "branches": branches, "card": self.main.card}

    def lines(self) -> list[str]:
        """Return the lines that a dry run prints."""
        stored = sum(branch.size for branch in self.branches[:-1])
        lines = [line for branch in self.branches for line in branch.lines(files=branch is self.main)]
        total = f"{shown_bytes(stored)} in total; the weights on main are those of its branch, stored once"
        return [*lines, *self.main.remarks(), total]

    def sent_line(self) -> str:
        """Return the line that is printed once it was sent."""
        kind = "private" if self.private else "public"
        sent = f"sent {', '.join(self.sent)}" if self.sent else "everything was there already"
        return f"{self.address} ({kind}): {sent}; main has step {self.main.step}"


class Publication:
    """The branches of a run's repository; every snapshot is read and verified once before it is part of one."""

    def __init__(self, run: RunDir, token: str | None) -> None:
        self._run = run
        self._verified: set[int] = set()
        self.recipe: Recipe = load_recipe(run.recipe_file)
        base = branch_contents.base_of(run, self.recipe)
        asked = base.name is not None and not is_offline(os.environ)
        self._base = replace(base, licence=upload.base_licence(str(base.name), token)) if asked else base

    def branch(
        self, repo: str, saved: Saved, name: str, steps: Sequence[int] = (), why: str = "", *, is_best: bool = False
    ) -> Branch:
        """Return a branch; for main also pass the steps that have one, and why it has this snapshot.

        Raise KitError for a damaged snapshot and for an adapter of an unknown base.
        """
        run = self._run
        branch_contents.refuse_unknown_base(saved, self._base)
        if saved.step not in self._verified:
            if damage := verify(saved, run.run_id):
                raise KitError(
                    f"the snapshot {saved.path} is damaged ({damage}), so it is not published: delete its folder to "
                    "publish the others"
                )
            self._verified.add(saved.step)
        text = card(
            repo=repo,
            step=saved.step,
            is_adapter=(saved.path / ADAPTER).is_file(),
            recipe=self.recipe,
            base=self._base,
            record=run.read_record(),
            measured=card_figures.best(run, [saved.step]),
            branches=steps,
            example=branch_contents.example_of(run, self.recipe),
            why=why,
            is_best=is_best,
        )
        return branch_contents.fill_branch(run, self.recipe, self._base, saved, name, text)

    def plan(self, repo: str, wanted: str | None) -> PublishPlan:
        """Return what `mini-r1 publish` sends: every snapshot and the best on main, or only `wanted`, `BEST` or a step.

        Raise KitError if there is no such snapshot, and as `branch` does.
        """
        run = self._run
        saved = {each.step: each for each in run.require_snapshots()}
        steps = list(saved)
        known = card_figures.measured(run, steps)
        best = card_figures.best(run, steps)
        step = max(steps) if (wanted or best) is None else card_figures.chosen_step(run, wanted or "BEST", steps)
        why, is_best = f" of {max(steps)}", False
        if best is not None and (wanted or "BEST").upper() == "BEST":
            is_best = len(known) > 1
            many = f"the highest held-out success of the {len(known)} snapshots measured"
            source = CURVE if best.file == CURVE else f"evaluation/{best.file}"
            source += f" ({best.limit} problems)" if best.limit else ""
            why += f", {many if is_best else 'the only snapshot measured'}, by {source}"
        elif wanted is None:
            why += ", the newest: no held-out success was measured to choose by"
        sent = sorted(steps) if wanted is None else [step]
        main = self.branch(repo, saved[step], MAIN, sent, why, is_best=is_best)
        branches = [self.branch(repo, saved[number], f"step-{number}") for number in sent]
        return PublishPlan(repo, (*branches, main), why.strip(" ,"))


def dry_run(path: Path, repo: str, wanted: str | None, report: Report) -> PublishPlan:
    """Return what `publish` would send; the only request is for the licence of the base, if the hub can be reached."""
    token = upload.find_token()
    plan = Publication(_open(path, repo), token).plan(repo, wanted)
    report("nothing was sent" + ("" if token else f"; {upload.LOGIN_HINT}"))
    return plan


def publish(path: Path, repo: str, wanted: str | None, *, public: bool, report: Report) -> PublishPlan:
    """Send a run's snapshots to the hub, except what is there already; `wanted` is that of `Publication.plan`.

    `public` makes a new repository public; without it a public one is refused. `report` receives lines of progress.

    Raises:
        KitError: 78 for an error of the run, the token or the name, 150 for one of the hub or the network.
    """
    run = _open(path, repo)
    token = upload.require_token()
    publication = Publication(run, token)
    publication.plan(repo, wanted)  # refuse what can't work before anything is made on the hub
    repository = Repository(repo, token, report)
    private = repository.open(run.run_id, private=not public)
    if public and private:
        report(f"{repository.name} is private and stays private: make it public on its page")
    plan = publication.plan(repository.name, wanted)
    for remark in plan.main.remarks():
        report(remark)
    sent = tuple(branch.name for branch in plan.branches if repository.send(branch))
    return replace(plan, address=repository.address, private=private, sent=sent)


def _open(path: Path, repo: str) -> RunDir:
    """Return the run; raise KitError if it has no id, or if no repository can have this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    run = open_run(path)
    if not run.run_id:
        raise KitError(f"{run.run_file} is missing or cannot be read, so the run can't be identified")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise hub_error(error, repo) from error
    return run


def default_name(run: RunDir, recipe: Recipe) -> str:
    """Return the recipe's repository, else the directory's name in the token's own space."""
    return recipe.hub_model_id or run.path.absolute().name
