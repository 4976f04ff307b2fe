"""`train` and `launch`: train a recipe in this process, or on all devices of the job."""

import os
from typing import Annotated

from click import UsageError
from typer import Argument, Option

from mini_r1.cli.command_tools import progress_printer
from mini_r1.cli.options import MAX_GPUS, PATH, DeepSpeed, GpuMemory, Gpus, RunDirOption, Set, VllmDevices
from mini_r1.console import progress_console
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.nodes import MAX_NODES
from mini_r1.run.run_dir import RunDir


def train(
    recipe: Annotated[str | None, Argument(click_type=PATH, help="Recipe file, or name of a shipped recipe.")] = None,
    overrides: Set = None,
    run_dir: RunDirOption = None,
    deepspeed: Annotated[
        str | None,
        Option(click_type=PATH, help="none, zero2, zero3, zero3-offload or a JSON file; default: accelerate's."),
    ] = None,
    vllm_devices: Annotated[
        int, Option(min=1, max=MAX_GPUS, help="With torchrun: node 0's last N devices run vLLM.")
    ] = 1,
    config: Annotated[
        str | None, Option(click_type=PATH, metavar="RECIPE", help="The recipe, for the original's command.")
    ] = None,
) -> ExitCode:
    """Train a recipe in this process, or resume it from its last checkpoint.

    With several GPUs, use `mini-r1 launch`; or start one process for each with torchrun or accelerate launch.

    Examples:
      mini-r1 train demo-cpu
      mini-r1 train my.yaml --set learning_rate=1e-6 --run-dir runs/lr1e-6
      torchrun --nproc-per-node 3 -m mini_r1 train my.yaml --deepspeed zero3
    """
    from mini_r1.training.supervised import Supervisor

    supervisor = Supervisor.from_environment()
    supervisor.attach()  # first: the imports below take seconds
    from mini_r1 import api
    from mini_r1.launch import torchrun
    from mini_r1.launch.job import LaunchOptions
    from mini_r1.recipe.deepspeed_file import find_deepspeed
    from mini_r1.recipe.recipe_file import effective_output_dir, find_recipe

    if (recipe is None) == (config is None):
        raise UsageError("Name one recipe: `mini-r1 train RECIPE`, or --config RECIPE.")
    path = find_recipe(recipe or config or "")
    loaded = api.load_recipe(path, overrides or [])
    deepspeed = deepspeed or torchrun.accelerate_deepspeed(os.environ) or "none"
    sharding = None if deepspeed == "none" else find_deepspeed(deepspeed)
    if os.environ.get("MINI_R1_ACCELERATOR") == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, once imported, has decided by the devices it sees
    console = progress_console()
    console.quiet = os.environ.get("RANK", "0") != "0"  # one of several workers: rank 0 prints for all

    def join(run: RunDir) -> None:
        if not supervisor:
            number = str(vllm_devices)
            options = LaunchOptions(str(path), overrides or [], run.path, deepspeed=deepspeed, vllm_devices=number)
            torchrun.join_workers(options, loaded, run, sharding, os.environ, progress_printer())

    run_dir = run_dir or effective_output_dir(loaded, path)
    together = join if "RANK" in os.environ else None
    return api.train(loaded, run_dir, deepspeed=sharding, console=console, join=together).exit_code


def launch(
    recipe: Annotated[
        str,
        Argument(click_type=PATH, help="Recipe file, shipped recipe's name, or auto: the largest that fits."),
    ],
    overrides: Set = None,
    run_dir: RunDirOption = None,
    gpus: Gpus = None,
    nodes: Annotated[int | None, Option(min=1, max=MAX_NODES, help="Nodes; default: the scheduler's.")] = None,
    node_index: Annotated[int | None, Option(min=0, help="Index of this node; default: the scheduler's.")] = None,
    address: Annotated[str | None, Option(help="Address of node 0 for the others; default: the scheduler's.")] = None,
    port: Annotated[int | None, Option(min=1024, max=65534, help="Port on node 0; the next one is used too.")] = None,
    deepspeed: DeepSpeed = "auto",
    gpu_memory: GpuMemory = None,
    vllm_devices: VllmDevices = "1",
    dry_run: Annotated[bool, Option("--dry-run", help="Start nothing: print all commands and environments.")] = False,
    print_run_dir: Annotated[bool, Option("--print-run-dir", help="With --dry-run: print the run directory.")] = False,
    as_json: Annotated[bool, Option("--json", help="With --dry-run: print JSON and nothing else.")] = False,
) -> ExitCode:
    """Train a recipe on all devices of this node or of several nodes.

    On several nodes, run the same command once on each node.

    Examples:
      mini-r1 launch my.yaml
      mini-r1 launch my.yaml --dry-run
      mini-r1 launch my.yaml --vllm-devices 2
      srun --ntasks-per-node=1 mini-r1 launch my.yaml
      mini-r1 launch my.yaml --nodes 2 --node-index 0 --address gpu1
    """
    from mini_r1.launch import launcher
    from mini_r1.launch.job import LaunchOptions

    if print_run_dir and (as_json or not dry_run):
        raise KitError("--print-run-dir needs --dry-run, without --json")
    if as_json and not dry_run:
        raise KitError("--json needs --dry-run: a launch prints its progress, and its run directory is the result")
    options = LaunchOptions(
        recipe, overrides or [], run_dir, gpus, nodes, node_index, address, port, deepspeed, gpu_memory, vllm_devices
    )  # fmt: skip
    progress = progress_printer()
    if dry_run:
        answer = launcher.dry_run(options, os.environ, progress, print_run_dir=print_run_dir, as_json=as_json)
        print(f"{answer}\n", end="")  # in one write, since srun may mix the pieces of several nodes
        return ExitCode.FINISHED
    ending = launcher.launch(options, os.environ, progress)
    if ending.text:
        progress(f"{'' if ending.code == ExitCode.INTERRUPTED else 'error: '}{ending.text}")
    return ending.code
