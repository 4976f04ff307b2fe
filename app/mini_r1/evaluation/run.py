"""`mini-r1 evaluate`: a run's snapshot or any model on a set of problems; what is written, and the table shown."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import mini_r1
from mini_r1.console import ProgressLine, printable, progress_console
from mini_r1.countdown import task
from mini_r1.errors import KitError
from mini_r1.evaluation.evaluate import evaluate
from mini_r1.generation.model import describe, device, load_model, load_tokenizer, refuse_misfit
from mini_r1.manifest import Saved, verify
from mini_r1.provenance import utc_now, versions
from mini_r1.recipe_file import load_recipe
from mini_r1.rundir import RunDir, write_json

SHOWN_REASONS = 8
"""Failure reasons in the table; the JSON has all of them."""
RECORDED_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")

# For a model that brings no recipe: the seed's own.
DEFAULT_STYLE = "script"
DEFAULT_TEMPERATURE = 0.9
DEFAULT_MAX_NEW_TOKENS = 1024
DEFAULT_SEED = 42


@dataclass(frozen=True, slots=True)
class _Source:
    """What is evaluated, on which problems and how."""

    model: str
    problems_file: Path
    style: str
    temperature: float
    max_new_tokens: int
    seed: int
    selection_seed: int
    """Of the shuffle that `limit` takes its problems from: runs that differ in `seed` alone get the same ones."""
    run: RunDir | None = None
    saved: Saved | None = None


def evaluate_run_or_model(
    source: str,
    problems_file: Path | None = None,
    samples: int = 4,
    *,
    limit: int | None = None,
    step: int | None = None,
    prompt_style: str | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a snapshot of a run or a model; of a run, also write `evaluation/step-N.json`.

    The file's name tells the problems: `step-N.json` is the run's held-out part, `step-N-HASH.json` another file with
    that SHA-256, and `-limit-M` is added for M problems only, so that none of these overwrites the other.

    Args:
        source: a run directory, a model directory or a hub id.
        problems_file: None is the run's held-out part.
        samples: sampled completions for each problem.
        limit: take this many problems of a seeded shuffle.
        step: which snapshot; None is the newest complete one.
        prompt_style: this and what follows: None is the run's recipe, else the seed's script prompt, temperature 0.9,
            1,024 tokens and seed 42.
        temperature: of the sampled completions.
        max_new_tokens: longest completion.
        seed: of the sampling.
        console: for progress; None is standard error.

    Returns:
        `Evaluation.to_json()`, and `provenance`: `source`, `model` (see `generation.model.describe`),
        `step` and `snapshot` (of a run), `problems_file`, `problems_sha256`, `problems_in_file`, `limit`, `selection`
        (how the limited ones were chosen, in words), `prompt_style`, `max_new_tokens`, `seed`, `device`, `versions`,
        `date` (UTC), `written_to`.

    Raises:
        KitError: nothing there to evaluate, or an argument is out of range.
        DataError: the problems are wrong.
    """
    if samples < 1:
        raise KitError(f"--samples must be at least 1, found {samples}")
    if limit is not None and limit < 1:
        raise KitError(f"--limit must be at least 1, found {limit}")
    chosen = _find(source, problems_file, step)
    problems, facts = _problems(chosen)
    available = len(problems)
    problems = problems[:limit]
    where = device()
    model = load_model(chosen.model, None, "float32" if where.type == "cpu" else "bfloat16", None).to(where)
    tokenizer = load_tokenizer(chosen.model, None)
    refuse_misfit(model, tokenizer)
    style = prompt_style or chosen.style
    longest = chosen.max_new_tokens if max_new_tokens is None else max_new_tokens
    sampling_seed = chosen.seed if seed is None else seed
    total = len(problems) * (1 + samples)
    with ProgressLine(console or progress_console(), "completions", total) as line:
        evaluation = evaluate(
            model,
            tokenizer,
            problems,
            samples=samples,
            temperature=chosen.temperature if temperature is None else temperature,
            max_new_tokens=longest,
            prompt_style=style,
            seed=sampling_seed,
            on_progress=line.update,
        )
    limited = len(problems) < available
    provenance = {
        "source": source,
        "model": describe(model),
        "step": chosen.saved.step if chosen.saved else None,
        "snapshot": str(chosen.saved.path) if chosen.saved else None,
        "problems_file": str(chosen.problems_file),
        "problems_sha256": facts["sha256"],
        "problems_in_file": available,
        "limit": limit,
        "selection": f"first {len(problems)} of {available} problems by a shuffle with seed {chosen.selection_seed}"
        if limited
        else f"all {available} problems",
        "prompt_style": style,
        "max_new_tokens": longest,
        "seed": sampling_seed,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu x {os.cpu_count()}",
        "versions": {
            "mini-r1": mini_r1.__version__,
            "python": platform.python_version(),
            **versions(RECORDED_VERSIONS),
        },
        "date": utc_now(),
        "written_to": None,
    }
    result = {**evaluation.to_json(), "provenance": provenance}
    if chosen.run is not None and chosen.saved is not None:
        name = f"step-{chosen.saved.step}"
        if problems_file is not None:
            name += f"-{str(facts['sha256'])[:8]}"
        if limited:
            name += f"-limit-{limit}"
        path = chosen.run.evaluation / f"{name}.json"
        provenance["written_to"] = str(path)
        chosen.run.evaluation.mkdir(exist_ok=True)
        write_json(path, result)
    return result


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """The result for people, on standard output: overall, by strata, why answers failed."""
    console = console or Console()
    provenance = result["provenance"]
    step = "" if provenance["step"] is None else f", step {provenance['step']}"
    table = Table(title=_text(f"{provenance['source']}{step}: {provenance['selection']}"), title_justify="left")
    table.add_column("")
    for heading in ("n", "greedy", "95 %", f"sampled (T {result['temperature']:g})", "95 %"):
        table.add_column(heading, justify="right")
    table.add_row(*_row("all", result, result["problems"]))
    for stratum, values in result["by"].items():
        table.add_section()
        for value, figures in values.items():
            name = f"{value} {stratum}" if value.isdecimal() else value
            table.add_row(*_row(name, figures, figures["n"]))
    console.print(table)

    more = Table(show_header=False)
    for k, figures in result["pass_at_k"].items():
        if k != "1":
            more.add_row(f"pass@{k}", f"{figures['value']:.1%}  ({_limits(figures['ci95'])})")
    more.add_row("format kept", f"{result['format']:.1%}")
    more.add_row("tries per answer", f"{result['tries']:.1f}")
    more.add_row("tokens per answer", f"{result['completion_tokens']:.0f}, {result['truncated']:.1%} cut short")
    more.add_row("time", f"{result['seconds']:.0f} s on {provenance['device']}")
    console.print(more)

    if result["reasons"]:
        sampled = result["problems"] * result["samples"]
        why = Table("why a sampled answer failed", "share", title_justify="left")
        for reason, count in list(result["reasons"].items())[:SHOWN_REASONS]:
            why.add_row(_text(reason), f"{count / sampled:.1%}")
        console.print(why)
    if provenance["written_to"]:
        console.print(_text(f"written to {provenance['written_to']}"), soft_wrap=True)


def _find(source: str, problems_file: Path | None, step: int | None) -> _Source:
    """Tell a run from a model, and find its weights, problems and settings.

    Raises:
        KitError: there is nothing to evaluate, or nothing to evaluate it on.
    """
    path = Path(source).expanduser()
    run = RunDir(path)
    if not run.is_run():
        if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise KitError(
                f"{source} holds neither a run (no recipe.yaml) nor a model or adapter (no config.json, "
                "no adapter_config.json)"
            )
        if step is not None:
            raise KitError(f"--step chooses a snapshot of a run, and {source} is not a run directory")
        if problems_file is None:
            raise KitError(
                f"{source} is a model and not a run, so it has no held-out part: name a file with --problems"
            )
        name = str(path) if path.exists() else source
        return _Source(
            name, problems_file, DEFAULT_STYLE, DEFAULT_TEMPERATURE, DEFAULT_MAX_NEW_TOKENS, DEFAULT_SEED, DEFAULT_SEED
        )
    recipe = load_recipe(run.recipe_file)
    saved = _snapshot(run, step)
    if problems_file is None and recipe.test_fraction == 0:
        raise KitError(f"{source} held no problems out (test_fraction 0): name a file with --problems")
    return _Source(
        str(saved.path),
        problems_file or run.held_out_file,
        recipe.prompt_style,
        recipe.temperature,
        recipe.max_completion_length,
        recipe.seed,
        recipe.dataset_seed,
        run,
        saved,
    )


def _snapshot(run: RunDir, step: int | None) -> Saved:
    """The newest complete snapshot, or that of a step; its files are those that were saved."""
    complete = run.complete_snapshots()
    if not complete:
        raise KitError(
            f"{run.path} has no complete snapshot yet: wait for the first save (save_steps of the recipe), or stop "
            "the run with SIGTERM, which saves one"
        )
    matching = [saved for saved in complete if step in (None, saved.step)]
    if not matching:
        steps = ", ".join(str(saved.step) for saved in reversed(complete))
        raise KitError(f"{run.path} has no complete snapshot of step {step}; there are: {steps}")
    found = matching[0]
    fault = verify(found, run.run_id)
    if fault is not None:
        raise KitError(f"the snapshot {found.path} is damaged ({fault}): choose another one with --step")
    return found


def _problems(chosen: _Source) -> tuple[list[task.Problem], dict[str, object]]:
    """All problems of the file in a seeded order, and facts about the file.

    Raises:
        DataError: the file is missing or wrong.
    """
    if not chosen.problems_file.exists():  # else a name like owner/name would be looked for on the hub
        raise task.DataError(f"{chosen.problems_file}: no such file")
    data = task.load_data(
        str(chosen.problems_file),
        revision=None,
        rows=None,
        seed=chosen.selection_seed,
        test_fraction=0.0,
        split_by="key",
        generator=None,
    )
    return data.train, data.provenance


def _row(name: str, figures: dict[str, Any], n: int) -> list[Text | str]:
    return [
        _text(name),
        f"{n:,}",
        f"{figures['greedy']:.1%}",
        _limits(figures["greedy_ci95"]),
        f"{figures['sampled']:.1%}",
        _limits(figures["ci95"]),
    ]


def _limits(interval: list[float]) -> str:
    return f"{interval[0]:.1%} - {interval[1]:.1%}"


def _text(text: str) -> Text:
    """What a model, a file or a user wrote: controls made visible, and no markup."""
    return Text(printable(text))
