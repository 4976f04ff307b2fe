"""What the commands of cli.py do, one function each: read the input, call the room, turn its errors into sentences."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mini_r1.console import ProgressLine, printable, progress_console
from mini_r1.disk_errors import disk_error, named
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.heavy_imports import needs_extra
from mini_r1.tasks.countdown.problem import DataError

SHOWN_ROWS = 5
"""Rows that are named where many have the same fault."""

if TYPE_CHECKING:
    from mini_r1.doctor.node_checks import Report
    from mini_r1.launch.job import LaunchOptions
    from mini_r1.tasks.countdown.problem import Problem


def train(recipe_name: str, overrides: list[str], run_dir: Path | None, deepspeed: str = "none") -> ExitCode:
    """`mini-r1 train`."""
    from mini_r1.recipe.deepspeed_file import find_deepspeed
    from mini_r1.recipe.recipe_file import effective_output_dir, find_recipe, load_recipe
    from mini_r1.run.finished import finished_step_before_loading, print_finished
    from mini_r1.run.run_dir import RunDir
    from mini_r1.training.supervised import Supervisor

    Supervisor.from_environment().attend()  # first: the imports below take seconds
    path = find_recipe(recipe_name)
    recipe = load_recipe(path, overrides)
    sharding = None if deepspeed == "none" else find_deepspeed(deepspeed)
    if os.environ.get("MINI_R1_ACCELERATOR") == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, once imported, has decided by the devices it sees
    console = progress_console()
    console.quiet = os.environ.get("RANK", "0") != "0"  # one of several workers: rank 0 speaks for all
    for warning in recipe.warnings():
        console.print(f"warning: {printable(warning)}", style="yellow", markup=False)
    run = RunDir(run_dir or effective_output_dir(recipe, path))
    if "RANK" not in os.environ:  # of several workers rank 0 looks, for all
        finished = finished_step_before_loading(run, recipe)
        if finished is not None:
            print_finished(console, run, finished)
            return ExitCode.FINISHED
    with needs_extra("train", deepspeed=sharding is not None, console=console):
        from mini_r1.training.train import train as run_training
    outcome = run_training(recipe, run, sys.argv, console, deepspeed=sharding)
    if outcome.exit_code == ExitCode.FINISHED:
        console.print(f"finished at step {outcome.step}: {run.path}", markup=False)
    else:
        say_interrupted(console, outcome.step)
    return outcome.exit_code


def launch(order: LaunchOptions, *, dry_run: bool, print_run_dir: bool, as_json: bool) -> ExitCode:
    """`mini-r1 launch`."""
    from mini_r1.launch import launcher as room

    console = progress_console()

    def say(line: str) -> None:
        console.print(printable(line), markup=False)

    if print_run_dir and (as_json or not dry_run):
        raise KitError("--print-run-dir needs --dry-run, without --json")
    if dry_run:
        print(room.dry_run(order, os.environ, say, print_run_dir=print_run_dir, as_json=as_json))
        return ExitCode.FINISHED
    if as_json:
        raise KitError("--json goes with --dry-run: a launch prints its progress, and its run directory is the result")
    ending = room.launch(order, os.environ, say)
    if ending.text:
        say(f"{'' if ending.code == ExitCode.INTERRUPTED else 'error: '}{ending.text}")
    return ending.code


def plan(
    recipe_name: str,
    overrides: list[str],
    gpus: int | None,
    nodes: int | None,
    gpu_memory_gib: float | None,
    deepspeed: str,
    grace_s: float | None,
    *,
    as_json: bool,
) -> ExitCode:
    """`mini-r1 plan`."""
    from mini_r1.plan.plan_tables import print_plan
    from mini_r1.plan.recipe_plans import find_hardware, plan_for
    from mini_r1.plan.timing import given_grace, grace_warning
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe

    path = find_recipe(recipe_name)
    place = find_hardware(os.environ, gpus=gpus, nodes=nodes, gpu_memory_gib=gpu_memory_gib, recipe=path)
    grace = given_grace(os.environ, grace_s)
    made = plan_for(load_recipe(path, overrides), place, deepspeed)
    short = grace_warning(made.timing, grace)
    if short is not None:
        made.warnings.append(short)
    if as_json:
        print(json.dumps({**made.to_dict(), "devices_from": place.source}))
    else:
        print_plan(made, Console(highlight=False), place.source)
    return ExitCode.CONFIG if made.errors else ExitCode.FINISHED


def recipes(gpus: int | None, nodes: int | None, gpu_memory_gib: float | None, *, as_json: bool) -> None:
    """`mini-r1 recipes`."""
    from mini_r1.plan.plan_tables import print_recipes
    from mini_r1.plan.recipe_plans import find_hardware, recipe_rows, shipped_plans

    if gpus is None and (nodes is not None or gpu_memory_gib is not None):
        raise KitError("--nodes and --gpu-memory go with --gpus: say how many")
    place = None
    if gpus is not None:
        place = find_hardware(os.environ, gpus=gpus, nodes=nodes, gpu_memory_gib=gpu_memory_gib, recipe=None)
    rows = recipe_rows(shipped_plans(place))
    if as_json:
        print(json.dumps(rows))
    else:
        print_recipes(rows, Console(highlight=False))


def prefetch(recipe_name: str, overrides: list[str], *, as_json: bool) -> None:
    """`mini-r1 prefetch`."""
    from mini_r1.hub.prefetch import prefetch as fetch

    done = fetch(_recipe_for_elsewhere(recipe_name), overrides, os.environ, progress_console())
    print(json.dumps(done.to_dict()) if as_json else printable("\n".join(done.lines())))


def doctor(
    recipe_name: str | None,
    overrides: list[str],
    run_dir: Path | None,
    *,
    gpus: int | None,
    deepspeed: str,
    gpu_memory_gib: float | None,
    as_json: bool,
) -> ExitCode:
    """`mini-r1 doctor`."""
    from mini_r1.doctor.node_checks import examine
    from mini_r1.machine.devices import given_devices
    from mini_r1.machine.nodes import find_nodes
    from mini_r1.recipe.recipe_file import find_recipe

    if recipe_name is None and overrides:
        raise KitError("--set changes a recipe: name one")
    console = progress_console()
    try:
        nodes = find_nodes(os.environ)
    except KitError as error:  # in a batch script's own shell, for one: the node can be looked at all the same
        console.print(f"warning: {printable(error.message)}; looking at this node alone", markup=False)
        nodes = None
    path = find_recipe(recipe_name) if recipe_name else None
    if path is not None:
        console.print("loading torch, the tokenizer and the data: some 20 s", markup=False)
    report = examine(
        path,
        overrides,
        devices=given_devices(os.environ, gpus),
        nodes=nodes,
        run_dir=run_dir,
        deepspeed=deepspeed,
        gpu_memory_gib=gpu_memory_gib,
    )
    return _reported(report, as_json=as_json)


def doctor_login(
    recipe_name: str | None, overrides: list[str], run_dir: Path | None, script: Path | None, *, as_json: bool
) -> ExitCode:
    """`mini-r1 doctor --login`."""
    from mini_r1.doctor.login_checks import examine

    if recipe_name is None and overrides:
        raise KitError("--set changes a recipe: name one")
    path = _recipe_for_elsewhere(recipe_name) if recipe_name else None
    return _reported(examine(path, overrides, script=script, run_dir=run_dir), as_json=as_json)


def smoke(run_dir: Path | None, *, gpus: int | None, as_json: bool) -> ExitCode:
    """`mini-r1 doctor --smoke`: a line for each part of the path as soon as it is known."""
    from mini_r1.doctor import smoke as room
    from mini_r1.findings import exit_code
    from mini_r1.machine.devices import given_devices
    from mini_r1.machine.nodes import find_nodes

    console = progress_console()
    devices, nodes = given_devices(os.environ, gpus), find_nodes(os.environ)
    setup = room.set_up(room.scratch_folder(run_dir, nodes), devices, nodes, gpus)
    findings = []
    for finding in room.smoke(setup, os.environ, lambda line: console.print(printable(line), style="dim")):
        findings.append(finding)
        if not as_json:
            print(f"{finding.status:4}  {finding.check}: {printable(finding.detail)}", flush=True)
            if finding.fix:
                print(f"      → {printable(finding.fix)}", flush=True)
    code = exit_code(findings)
    if as_json:
        values = {"devices": devices.source, "exit_code": int(code), "findings": [f.to_dict() for f in findings]}
        print(json.dumps(values))
    if code == ExitCode.FINISHED and run_dir is None:
        room.clean(setup.folder)
    else:
        console.print(f"what was run is in {setup.folder}", markup=False)
    return code


def health(path: Path, *, as_json: bool) -> ExitCode:
    """`mini-r1 health`."""
    from mini_r1.run.health import check_health

    found = check_health(path, time.time())
    print(json.dumps(found.to_dict()) if as_json else found.sentence)
    return found.exit_code


def bundle(run_path: Path, out: Path | None, *, completions: int, as_json: bool) -> None:
    """`mini-r1 bundle`."""
    from rich.table import Table

    from mini_r1.doctor.bundle import bundle as make_bundle
    from mini_r1.run.health import check_health
    from mini_r1.run.run_dir import RunDir

    target, run = out or Path(f"{run_path.absolute().name}-bundle.tar.gz"), RunDir(run_path)
    if run.is_starting():
        progress_console().print(check_health(run_path, time.time()).sentence, markup=False)
    made = make_bundle(run, target, completions=completions, environment=os.environ)
    if as_json:
        print(json.dumps(made.to_dict()))
        return
    table = Table("in it", "bytes", title=f"{made.path}: {made.size:,} bytes", title_justify="left")
    for name, size in made.files:
        table.add_row(name, f"{size:,}")
    Console(highlight=False, markup=False).print(table)
    progress_console().print(
        "secrets were taken out as far as they can be known; hosts, users and paths are in it: look before you send it"
    )


def score(file: str) -> None:
    """`mini-r1 score`: every line that could be read before a malformed one is printed."""
    from mini_r1.tasks.countdown.score_lines import score_line

    name = "standard input" if file == "-" else file
    with data_errors(), _binary_lines(file) as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            where = f"{name}:{number}"
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
            print(json.dumps(score_line(line, where)), flush=True)


def data_generate(rows: int, seed: int, out: Path) -> None:
    """`mini-r1 data generate`."""
    from mini_r1.cli.stop_signals import stopped_in_order
    from mini_r1.tasks.countdown.data import write_jsonl
    from mini_r1.tasks.countdown.generator import generate

    if rows < 1:
        raise KitError(f"--rows must be at least 1, found {rows}")
    console = progress_console()
    console.print(f"generating {rows:,} problems")
    problems: list[Problem] = []

    def stopped() -> str:
        done = f"{len(problems):,} of {rows:,} problems"
        return f"stopped after {done}, and {out} was not written: the same command starts again"

    with data_errors(), stopped_in_order(stopped), ProgressLine(console, "problems", rows) as line:
        for problem in generate(rows, seed):
            problems.append(problem)
            line.update(len(problems))
        with named(out):
            write_jsonl(problems, out)
    console.print(f"{rows:,} problems written to {out}", markup=False)


def data_inspect(file: Path, *, as_json: bool) -> None:
    """`mini-r1 data inspect`."""
    from rich.table import Table

    from mini_r1.cli.stop_signals import stopped_in_order
    from mini_r1.tasks.countdown.data import inspect, read_problems

    console = progress_console()
    with data_errors(), stopped_in_order(lambda: f"stopped: {file} was not looked at to its end"):
        problems = read_problems(file)
        with ProgressLine(console, "rows", len(problems)) as line:
            facts: dict[str, Any] = inspect(problems, line.update)
    _say_unchecked(console, file, facts["unchecked_rows"])
    if as_json:
        print(json.dumps(facts))
        return
    table = Table("", str(file), title="Countdown problems", title_justify="left")
    for key, value in _flat({**facts, "unchecked_rows": len(facts["unchecked_rows"])}):
        table.add_row(key, value)
    Console().print(table)


def _say_unchecked(console: Console, file: Path, rows: list[int]) -> None:
    """Say which rows were not searched for a solution to the end."""
    if not rows:
        return
    more = f" and {len(rows) - SHOWN_ROWS:,} more" if len(rows) > SHOWN_ROWS else ""
    named = ", ".join(map(str, rows[:SHOWN_ROWS])) + more
    console.print(
        f"{file}: row{'s' * (len(rows) > 1)} {named}: whether there is a solution was not checked to the end, because "
        "the search takes too long; such rows are left out of the solvable share",
        style="yellow",
        markup=False,
    )


# --- shared ---


def _recipe_for_elsewhere(name: str) -> Path:
    """The file of a recipe that another node is to train."""
    from mini_r1.recipe.recipe_file import find_recipe

    if name == "auto":
        raise KitError(
            "auto chooses by the devices of the node that trains, which this one need not have: name the recipe; "
            "`mini-r1 recipes --gpus 4 --gpu-memory 80` says what fits such a node"
        )
    return find_recipe(name)


def _reported(report: Report, *, as_json: bool) -> ExitCode:
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        Console(highlight=False).print(report.table())
    return report.exit_code


def say_interrupted(console: Console, step: int) -> None:
    """Say what a run that was asked to stop has saved, and what to run."""
    saved = f"interrupted after step {step}, saved: the same command resumes there"
    nothing = "interrupted before the first step was finished, so nothing is saved: the same command starts it again"
    console.print(saved if step else nothing, markup=False)


@contextmanager
def data_errors() -> Iterator[None]:
    """Turn the game's errors, and files that cannot be read or written, into exit code 78; a full disk into 150."""
    try:
        yield
    except DataError as error:
        raise KitError(str(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_error(error) or KitError(f"{error.filename or 'file'}: {error.strerror}") from error


@contextmanager
def _binary_lines(file: str) -> Iterator[Any]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as handle:
        yield handle


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(item, dict):
            yield from _flat(item, f"{name} · ")
        elif isinstance(item, float):
            yield name, f"{item:.1%}" if key.endswith("share") else f"{item:g}"
        else:
            yield name, f"{item:,}" if isinstance(item, int) else str(item)
