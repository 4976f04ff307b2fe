"""One snapshot or model measured, once: what is claimed, said, and written."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import mini_r1
from mini_r1.console import ProgressLine, printable
from mini_r1.disk_errors import disk_errors
from mini_r1.errors import KitError
from mini_r1.evaluation import source as sources
from mini_r1.evaluation.answer_engines import Engines
from mini_r1.evaluation.claims import claimed
from mini_r1.evaluation.evaluate import measure
from mini_r1.evaluation.source import Problems, Source
from mini_r1.evaluation.time_left import Rest
from mini_r1.generation.completers import Completer
from mini_r1.generation.model import device
from mini_r1.machine.provenance import utc_now, versions
from mini_r1.run.files import write_json, write_jsonl
from mini_r1.run.reader import completions_file

RECORDED_VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "vllm")


@dataclass(slots=True)
class Work:
    """One call's settings."""

    problems: Problems
    engines: Engines
    console: Console
    again: bool
    source: str
    """As the user named it."""

    def say(self, line: str) -> None:
        """On the console."""
        self.console.print(printable(line), markup=False)

    def say_what_was_trained_on(self) -> None:
        """Of a user's own problems: then the figures are not of problems that the model never saw."""
        if self.problems.trained_on:
            self.say(
                f"{self.problems.trained_on} of these {len(self.problems.asked)} problems were trained on "
                "(attempts/*/completions.jsonl): this is no held-out success"
            )


def measure_once(
    work: Work, chosen: Source, title: str, *, wait: bool, steps_after: int = 0
) -> tuple[dict[str, Any] | None, bool]:
    """Measure a model, unless another process is at it.

    Args:
        work: the call's settings.
        chosen: what is measured.
        title: for the progress.
        wait: for another process, whose result is taken then.
        steps_after: that will be measured after this one, for the estimate of the rest.

    Returns:
        The result, and whether it was measured here. None: another process is at it, and `wait` is False.

    Raises:
        KitError: it cannot be measured, or the result cannot be written.
    """
    path = sources.result_file(chosen, work.problems)
    with claimed(path, wait=False) as ours:
        if ours:
            return _measured_or_found(work, chosen, path, title, steps_after)
    if not wait:
        work.say(f"step {step_of(chosen)}: another process is measuring it")
        return None, False
    work.say(f"step {step_of(chosen)}: waiting for another process that is measuring it")
    with claimed(path, wait=True):
        return _measured_or_found(work, chosen, path, title, steps_after)


def _measured_or_found(
    work: Work, chosen: Source, path: Path | None, title: str, steps_after: int
) -> tuple[dict[str, Any], bool]:
    """Another process may have measured it since this one looked."""
    found = None if work.again else same_before(work, chosen)
    return (found, False) if found else (_measured(work, chosen, path, title, steps_after), True)


def same_before(work: Work, chosen: Source) -> dict[str, Any] | None:
    """The result of these very weights, problems and settings, if it is written already."""
    path = sources.result_file(chosen, work.problems)
    found = sources.read_result(path)
    if found is None or found["provenance"].get("settings") != sources.settings(chosen, work.problems):
        return None
    found["provenance"]["written_to"] = str(path)  # where it is now: a run may have been moved
    return found


def step_of(source: Source) -> int:
    """0 is the untrained model."""
    return source.step or 0


def _measured(work: Work, chosen: Source, path: Path | None, title: str, steps_after: int) -> dict[str, Any]:
    """Measure and, of a run, write."""
    chosen.verify()
    _say_what_differs(work, chosen, path)
    try:
        completer = work.engines.of(chosen, work.say)
    except (OSError, KitError):
        chosen.refuse_change()
        raise
    chosen.refuse_change()  # from here on its weights are in memory
    problems = work.problems.asked
    total = len(problems) * (1 + chosen.samples)
    rest = Rest(total, steps_after)
    with ProgressLine(work.console, title, total) as line:
        evaluation = measure(
            completer,
            problems,
            samples=chosen.samples,
            temperature=chosen.temperature,
            max_new_tokens=chosen.max_new_tokens,
            prompt_style=chosen.style,
            seed=chosen.seed,
            on_progress=lambda done: line.update(done, rest.words(done)),
        )
        figures = evaluation.to_json(chosen.game)  # seconds: the bar stands meanwhile
    result = {**figures, "provenance": _provenance(chosen, work.problems, completer, work.source)}
    if path is not None:
        result["provenance"]["written_to"] = str(path)
        with disk_errors(path.parent, lambda: "what was measured before is kept"):
            write_jsonl(completions_file(path), evaluation.rows(step_of(chosen)))
            write_json(path, result)  # last: with it the step counts as measured
    return result


def _provenance(chosen: Source, problems: Problems, completer: Completer, source: str) -> dict[str, Any]:
    where = device()
    return {
        "source": source,
        "model": completer.facts,
        "step": chosen.step,
        "snapshot": str(chosen.saved.path) if chosen.saved else None,
        "problems_file": str(chosen.problems_file),
        "problems_sha256": problems.sha256,
        "problems_in_file": problems.available,
        "limit": problems.limit,
        "selection": problems.words,
        "prompt_style": chosen.style,
        "max_new_tokens": chosen.max_new_tokens,
        "seed": chosen.seed,
        "engine": completer.name,
        "settings": sources.settings(chosen, problems),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu x {os.cpu_count()}",
        "versions": {
            "mini-r1": mini_r1.__version__,
            "python": platform.python_version(),
            **versions(RECORDED_VERSIONS),
        },
        "date": utc_now(),
        "written_to": None,
    }


def _say_what_differs(work: Work, chosen: Source, path: Path | None) -> None:
    """Before a result is replaced: by what it was another."""
    before = sources.read_result(path)
    if before is None or path is None or work.again:
        return
    now, then = sources.settings(chosen, work.problems), before["provenance"].get("settings")
    if not isinstance(then, dict):
        work.say(f"{path} is of an earlier version of the kit: measured again")
        return
    changed = [key.replace("_", " ") for key in now if now[key] != then.get(key)]
    if changed:
        work.say(f"{path} was measured with other settings ({', '.join(changed)}): measured again")
