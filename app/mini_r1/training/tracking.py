"""wandb and SwanLab: TensorBoard's names, completions, held-out results, and one run of theirs for all attempts.

transformers' integrations start the tracker's run and write the figures. SwanLab's package brings its own, because
transformers 4.48.1 has none.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

from rich.console import Console
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from mini_r1.console import printable
from mini_r1.errors import KitError, first_line
from mini_r1.machine.findings import sentence
from mini_r1.machine.trackers import TRACKERS, check_trackers
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.run.run_dir import RunDir
from mini_r1.training.curves import held_out_figures, tag, write_held_out

logger = logging.getLogger(__name__)

SWANLAB_ID_LENGTH = 21
"""Characters of a SwanLab run's id. Source: the documentation of `swanlab.init`."""
INSTALL_SWANLAB = f"`uv pip install {TRACKERS['swanlab'].packages['swanlab']}`"
WANDB_STEP = "train/global_step"
"""The x-axis that transformers' WandbCallback defines for all figures."""


class Trackers(AbstractContextManager["Trackers"]):
    """wandb and SwanLab of an attempt, on rank 0 of all nodes, if the recipe names them."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        self._names = {finding.check for finding in check_trackers(recipe.report_to, os.environ)}
        self._recipe, self._run, self._stack = recipe, run, ExitStack()
        self.callbacks: list[TrainerCallback] = []
        """Integrations that transformers doesn't have."""

    def __enter__(self) -> "Trackers":
        if self._names:
            self._stack.enter_context(_same_run(self._run))
            self._stack.enter_context(patch.object(integration_utils, "rewrite_logs", _group))
        if "swanlab" in self._names:
            self._stack.enter_context(redirect_stdout(sys.stderr))  # it prints; `demo --json` needs the standard output
            try:
                from swanlab.integration import transformers as swanlab_integration
            except Exception as error:  # protobuf's, if its version is another one
                raise KitError(f"swanlab cannot be imported: {first_line(error)}: {INSTALL_SWANLAB}") from error
            self._stack.enter_context(patch.object(swanlab_integration, "rewrite_logs", _group))
            self.callbacks = [swanlab_integration.SwanLabCallback(**_swanlab_names(self._recipe, self._run))]
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._stack:
            _finish(self._names, failed=kind is not None)

    def add_completions(self, step: int, shown: Mapping[str, str]) -> None:
        """Write completions of `curves.shown_completions`: a table in wandb, texts in SwanLab."""
        texts = {name: printable(text) for name, text in shown.items()}
        if "wandb" in self._names:
            import wandb

            rows = [[step, *each] for each in texts.items()]
            wandb.log({"completions/shown": wandb.Table(["step", "answer", "text"], rows), WANDB_STEP: step})
        if "swanlab" in self._names:
            import swanlab

            shown_texts = [swanlab.Text(text, caption=name) for name, text in texts.items()]
            swanlab.log({"completions/shown": shown_texts}, step=step)


def report_held_out(run: RunDir, evaluations: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Add the figures of evaluations to TensorBoard's events and to the run's wandb and SwanLab.

    A tracker that can't report is a warning: the results are in the run directory.
    """
    evaluations = list(evaluations)
    write_held_out(run, evaluations)
    figures = {result["provenance"]["step"]: held_out_figures(result) for result in evaluations}
    recipe = load_recipe(run.recipe_file)
    with _same_run(run), redirect_stdout(sys.stderr):  # SwanLab prints; the command's output may be JSON
        for finding in check_trackers(recipe.report_to, os.environ):
            report = _REPORT.get(finding.check)
            problem = None if finding.status == "ok" else sentence(finding)
            if report is not None and problem is None:
                try:
                    report(recipe, run, figures)
                    _finish([finding.check])
                except Exception as error:  # of any of a tracker's many kinds
                    logger.debug("%s cannot report", finding.check, exc_info=True)
                    problem = f"{finding.check}: {first_line(error)}"
            if report is not None and problem is not None:
                text = f"warning: the held-out results were not reported: {problem}"
                console.print(printable(text), style="yellow", markup=False)


def _report_to_wandb(recipe: Recipe, run: RunDir, figures: Mapping[int, Mapping[str, float]]) -> None:
    import wandb

    project = os.environ.get("WANDB_PROJECT", "huggingface")  # as in transformers
    wandb.init(project=project, name=recipe.run_name or run.path.name)
    wandb.define_metric(WANDB_STEP)
    wandb.define_metric("*", step_metric=WANDB_STEP, step_sync=True)
    for step, values in figures.items():
        wandb.log({**values, WANDB_STEP: step})


def _report_to_swanlab(recipe: Recipe, run: RunDir, figures: Mapping[int, Mapping[str, float]]) -> None:
    import swanlab

    swanlab.init(**_swanlab_names(recipe, run))
    for step, values in figures.items():
        swanlab.log(dict(values), step=step)


_REPORT: dict[str, Callable[[Recipe, RunDir, Mapping[int, Mapping[str, float]]], None]] = {
    "swanlab": _report_to_swanlab,
    "wandb": _report_to_wandb,
}


def _swanlab_names(recipe: Recipe, run: RunDir) -> dict[str, str | None]:
    return {"project": os.environ.get("SWANLAB_PROJECT"), "experiment_name": recipe.run_name or run.path.name}


@contextmanager
def _same_run(run: RunDir) -> Iterator[None]:
    """Let wandb and SwanLab resume one run of theirs for this run directory, unless the environment names another."""
    run_id = run.read_record().get("run_id", "")
    wanted = {
        "WANDB_RUN_ID": run_id,
        "WANDB_RESUME": "allow",
        "SWANLAB_RUN_ID": run_id[:SWANLAB_ID_LENGTH],
        "SWANLAB_RESUME": "allow",
    }
    with patch.dict(os.environ, {name: value for name, value in wanted.items() if name not in os.environ}):
        yield


def _group(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures under TensorBoard's names."""
    return {tag(name): value for name, value in figures.items()}


def _finish(names: Iterable[str], *, failed: bool = False) -> None:
    """End the runs of wandb and SwanLab of this process, so that its next run starts another."""
    for name in names:
        module = sys.modules.get(name)
        try:
            if name == "wandb" and module is not None and module.run is not None:
                module.finish(exit_code=int(failed))
            elif name == "swanlab" and module is not None:
                with suppress(RuntimeError):  # no run was started
                    module.finish(*([module.State.CRASHED, "see the run's logs"] if failed else []))
        except Exception:  # the run directory is complete without it
            logger.exception("%s did not end its run", name)
