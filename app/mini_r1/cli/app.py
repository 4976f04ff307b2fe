"""The command line: what there is, and nothing of how it is done. Every command imports its room when it runs.

The commands that show a run are declared in run_commands.py.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperArgument

from mini_r1.cli import run_commands
from mini_r1.cli.options import DeepSpeed, GpuMemory, Gpus, Json, RunDirOption, Set
from mini_r1.cli.standard_streams import BestEffortStream, exit_process, flush_output
from mini_r1.errors import ExitCode, KitError

app = typer.Typer(
    name="mini-r1",
    help="Reproduce DeepSeek-R1's 'aha moment': GRPO on the Countdown game, on a laptop or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Make and inspect Countdown problems.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def demo(
    overrides: Set = None,
    run_dir: RunDirOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two steps only: shows the path, not the rise.")] = False,
    as_json: Json = False,
) -> None:
    """Train the tiny built-in model and show held-out success before and after: a few minutes on a CPU.

    Example: `mini-r1 demo`
    """
    from mini_r1.cli.demo import demo as run_demo

    _exit(run_demo(overrides or [], run_dir, quick=quick, as_json=as_json))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (demo-cpu).")],
    overrides: Set = None,
    run_dir: RunDirOption = None,
    deepspeed: Annotated[
        str, typer.Option(help="none, zero2, zero3, zero3-offload or a JSON file; `mini-r1 launch` says it.")
    ] = "none",
) -> None:
    """Train one recipe in this process; started again, it goes on from the last complete checkpoint.

    Examples: `mini-r1 train demo-cpu` -
    `mini-r1 train my.yaml --set learning_rate=1e-6 --set seed=7 --run-dir runs/seed7`
    """
    from mini_r1.cli.train_commands import train as run_train

    _exit(run_train(recipe, overrides or [], run_dir, deepspeed))


@app.command()
def launch(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Set = None,
    run_dir: RunDirOption = None,
    gpus: Gpus = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes of the job; default: what the scheduler says.")] = None,
    node_index: Annotated[int | None, typer.Option(help="Of this node, from 0.")] = None,
    address: Annotated[str | None, typer.Option(help="Of node 0, as the others reach it.")] = None,
    port: Annotated[int | None, typer.Option(help="Of the rendezvous; the next one is used too.")] = None,
    deepspeed: DeepSpeed = "auto",
    gpu_memory: GpuMemory = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Start nothing: show every node's commands and environment.")
    ] = False,
    print_run_dir: Annotated[
        bool, typer.Option("--print-run-dir", help="With --dry-run: check everything, print only the run directory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON, and nothing else.")] = False,
) -> None:
    """Train a recipe on all devices of this node, and with several nodes on all of them: start it once on each.

    Examples: `mini-r1 launch my.yaml` - `mini-r1 launch my.yaml --dry-run` -
    `srun --ntasks-per-node=1 mini-r1 launch my.yaml` -
    `mini-r1 launch my.yaml --nodes 2 --node-index 0 --address gpu1`
    """
    from mini_r1.cli.train_commands import launch as run_launch
    from mini_r1.launch.job import LaunchOptions

    order = LaunchOptions(
        recipe, overrides or [], run_dir, gpus, nodes, node_index, address, port, deepspeed, gpu_memory
    )  # fmt: skip
    _exit(run_launch(order, dry_run=dry_run, print_run_dir=print_run_dir, as_json=as_json))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Set = None,
    gpus: Annotated[
        int | None, typer.Option(help="On each node, 0 is the CPU; default: those here, else the recipe's own shape.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="How many, all alike; default: 1, or the recipe's own.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", metavar="GIB", help="Of a GPU; default: as with --gpus.")
    ] = None,
    deepspeed: Annotated[str, typer.Option(help="auto, none, zero2, zero3, zero3-offload or a JSON file.")] = "auto",
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="From the request to stop to the kill: KillWait, GraceTime, terminationGracePeriodSeconds.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a recipe means on given devices, on one page: roles, batch, memory, disk, time, and what cannot work.

    Needs no GPU, no torch and no network; exit 78 when it cannot work.

    Examples: `mini-r1 plan mini-r1-3b` - `mini-r1 plan my.yaml --gpus 8 --nodes 2 --gpu-memory 80`
    """
    from mini_r1.cli.train_commands import plan as run_plan

    _exit(run_plan(recipe, overrides or [], gpus, nodes, gpu_memory, deepspeed, grace, as_json=as_json))


@app.command()
def recipes(
    gpus: Annotated[int | None, typer.Option(help="On each node; default: what each recipe was made for.")] = None,
    nodes: Annotated[int | None, typer.Option(help="With --gpus: how many nodes.")] = None,
    gpu_memory: Annotated[float | None, typer.Option("--gpu-memory", metavar="GIB", help="Of a GPU.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes: what fits these devices and what does not and why, hours, disk.

    Example: `mini-r1 recipes --gpus 2 --gpu-memory 80`
    """
    from mini_r1.cli.train_commands import recipes as run_recipes

    run_recipes(gpus, nodes, gpu_memory, as_json=as_json)


@app.command()
def prefetch(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch what a recipe names on the hub (model, tokenizer, data) into the hub's cache, to run it without a network.

    Then set HF_HUB_OFFLINE=1 in the job. Pickled weights are never fetched. After a failure the same command goes on.

    Examples: `mini-r1 prefetch mini-r1-3b` - `HF_HOME=/shared/hf mini-r1 prefetch my.yaml --set model_revision=main`
    """
    from mini_r1.cli.train_commands import prefetch as run_prefetch

    run_prefetch(recipe, overrides or [], as_json=as_json)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file, or the name of a shipped one; none: the node alone.")
    ] = None,
    overrides: Set = None,
    run_dir: RunDirOption = None,
    gpus: Gpus = None,
    deepspeed: DeepSpeed = "auto",
    gpu_memory: GpuMemory = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Train a tiny random model through the whole path; no RECIPE. Minutes.")
    ] = False,
    login: Annotated[
        bool, typer.Option("--login", help="On a Slurm login node, before sbatch: can a job start? No GPU, no torch.")
    ] = False,
    script: Annotated[
        Path | None, typer.Option(help="With --login: the batch script; default: slurm/train_4xh100.sh.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at this node, and at what a recipe needs of it: ok, warn or fail, with the fix for each.

    Exit 78 where the recipe or the installation is at fault, 150 where the node is.

    With --smoke: workers, collectives, vLLM's process, weight sync, save, a killed worker and a resume, for real, on
    these devices, a line for each; on several nodes started on each of them, with a shared --run-dir.

    With --login: Slurm, partition, account, batch script, runtime, image, model, data and run directory, as the site
    file (`source slurm/site.env`) and this node know them. Nothing is submitted.

    Examples: `mini-r1 doctor` - `mini-r1 doctor my.yaml --run-dir runs/first` - `mini-r1 doctor --smoke` -
    `MINI_R1_ACCELERATOR=cpu mini-r1 doctor --smoke --gpus 3` - `mini-r1 doctor my.yaml --login`
    """
    from mini_r1.cli.train_commands import doctor as run_doctor
    from mini_r1.cli.train_commands import doctor_login as run_login
    from mini_r1.cli.train_commands import smoke as run_smoke

    if login:
        if smoke or gpus is not None or gpu_memory is not None or deepspeed != "auto":
            raise typer.BadParameter(
                "--login looks at no device: leave --smoke, --gpus, --gpu-memory and --deepspeed out (they are for a "
                "node with GPUs)"
            )
        _exit(run_login(recipe, overrides or [], run_dir, script, as_json=as_json))
    if script is not None:
        raise typer.BadParameter("--script goes with --login")
    if smoke:
        if recipe is not None or overrides:
            raise typer.BadParameter("the smoke test brings its own recipe: leave RECIPE and --set out")
        _exit(run_smoke(run_dir, gpus=gpus, as_json=as_json))

    code = run_doctor(
        recipe, overrides or [], run_dir, gpus=gpus, deepspeed=deepspeed, gpu_memory_gib=gpu_memory, as_json=as_json
    )  # fmt: skip
    _exit(code)


@app.command()
def health(
    path: Annotated[Path, typer.Argument(help="A run directory, or a folder of them.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Does a run make progress? Exit 0 when it does or is finished, else 1: for a container's health check.

    Of several runs the one with the newest heartbeat counts. Needs no torch.

    Examples: `mini-r1 health` - `mini-r1 health runs/first --json`
    """
    from mini_r1.cli.train_commands import health as run_health

    _exit(run_health(path, as_json=as_json))


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="The archive; default: RUN's name and -bundle.tar.gz, here.")] = None,
    completions: Annotated[int, typer.Option(min=0, help="So many of the last completions go with it.")] = 0,
    as_json: Json = False,
) -> None:
    """Make an archive for whoever is to help: logs, stacks, metrics, versions, the node; no weights, no secrets.

    Example: `mini-r1 bundle runs/first --out first.tar.gz`
    """
    from mini_r1.cli.train_commands import bundle as run_bundle

    run_bundle(run, out, completions=completions, as_json=as_json)


# What shows a run.
for command in (
    run_commands.evaluate,
    run_commands.report,
    run_commands.samples,
    run_commands.play,
    run_commands.runs,
    run_commands.publish,
):
    app.command()(command)


@app.command()
def score(
    file: Annotated[str, typer.Argument(help="JSONL of completion, nums, target; - is standard input.")] = "-",
    as_json: Annotated[bool, typer.Option("--json", help="The default: one JSON line for each input line.")] = True,
) -> None:
    """Score completions: one JSON line out for each line in, with the four verdicts and the reason in words.

    Example: `echo '{"completion": "</think>\\n<answer>6 * 7</answer>", "nums": [6, 7], "target": 42}' | mini-r1 score`
    """
    from mini_r1.cli.train_commands import score as run_score

    run_score(file)


@data_app.command("generate")
def data_generate(
    rows: Annotated[int, typer.Option(help="How many problems.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows on every machine.")] = 42,
) -> None:
    """Generate problems with the distribution of the hub's data set, offline.

    Example: `mini-r1 data generate --rows 50000 --seed 42 --out problems.jsonl`
    """
    from mini_r1.cli.train_commands import data_generate as run_generate

    run_generate(rows, seed, out)


@data_app.command("inspect")
def data_inspect(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file of nums and target.")],
    as_json: Json = False,
) -> None:
    """Count rows, duplicates, solvable problems and those that need × or ÷.

    Example: `mini-r1 data inspect problems.jsonl`
    """
    from mini_r1.cli.train_commands import data_inspect as run_inspect

    run_inspect(file, as_json=as_json)


@app.command()
def version() -> None:
    """Print the version."""
    from mini_r1 import __version__

    typer.echo(__version__)


CTRL_C = 130
"""What typer makes of it, where the command did not see to it itself."""


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 78, usage errors included."""
    if sys.stderr is not None:  # None where it is closed
        sys.stderr = BestEffortStream(sys.stderr)  # type: ignore[assignment]
    try:
        code = _run()
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = int(ExitCode.FAILED)
    unwritten = flush_output()
    if unwritten is not None:
        code = _unwritten(unwritten)
    exit_process(code)


def _run() -> int:
    """Run the command and return its exit code; a disk that fails is one sentence and exit code 150."""
    try:
        result = _without_empty_defaults(typer.main.get_command(app))(prog_name="mini-r1", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        if code == CTRL_C:
            code = _fail("interrupted", ExitCode.INTERRUPTED)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.Abort:
        code = int(ExitCode.INTERRUPTED)
    except KeyboardInterrupt:
        code = int(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"\nSee '{context.command_path} --help'." if context is not None else ""
        code = _fail(error.format_message() + hint, ExitCode.CONFIG)
    except KitError as error:
        code = _fail(error.message, error.exit_code)
    except BrokenPipeError as error:
        code = _unwritten(error)
    except Exception as error:
        from mini_r1.disk_errors import disk_error

        described = disk_error(error) if isinstance(error, OSError) else None
        if described is None:
            _say_in_json(f"{type(error).__name__}: {error}", ExitCode.FAILED)
            raise  # a defect: the traceback is what a report of it needs
        code = _fail(described.message, described.exit_code)
    return code


def _unwritten(error: OSError) -> int:
    """Return the exit code for output that could not be written."""
    from mini_r1.disk_errors import disk_error

    described = disk_error(error)
    if isinstance(error, BrokenPipeError) or described is None:  # the reader of our output has gone
        sys.stderr.close()
        return int(ExitCode.FAILED)
    return _fail(described.message, described.exit_code)


def _without_empty_defaults(command: click.Command) -> click.Command:
    """A help without `[default: None]`, which typer shows and which says nothing."""
    for parameter in command.params:
        if parameter.default is None and isinstance(parameter, click.Option | TyperArgument):
            parameter.show_default = False
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _without_empty_defaults(below)
    return command


def _fail(message: str, code: ExitCode) -> int:
    """Say it on standard error; with --json also as an object on standard output."""
    from mini_r1.console import printable

    _say_in_json(message, code)
    print(f"{'' if code == ExitCode.INTERRUPTED else 'error: '}{printable(message)}", file=sys.stderr)
    return int(code)


def _say_in_json(message: str, code: ExitCode) -> None:
    if "--json" in sys.argv:
        import json

        with contextlib.suppress(OSError):
            print(json.dumps({"error": message, "exit_code": int(code)}))


def _exit(code: ExitCode) -> None:
    raise typer.Exit(int(code))
