"""`plan` and `recipes`: what a recipe needs on given devices, and what its keys mean."""

import json
import os
from typing import Annotated

from rich.console import Console
from typer import BadParameter, Context, Option, Typer

from mini_r1.cli.command_group import CommandGroup
from mini_r1.cli.options import MAX_GPUS, DeepSpeed, FiniteRange, GpuMemory, Json, RecipeName, Set, VllmDevices
from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.nodes import MAX_NODES


def plan(
    recipe: RecipeName,
    overrides: Set = None,
    gpus: Annotated[
        int | None, Option(min=0, max=MAX_GPUS, help="GPUs per node; 0: CPU; default: as here or the recipe's.")
    ] = None,
    nodes: Annotated[
        int | None, Option(min=1, max=MAX_NODES, help="Number of nodes; default: 1, or the recipe's.")
    ] = None,
    gpu_memory: GpuMemory = None,
    deepspeed: DeepSpeed = "auto",
    vllm_devices: VllmDevices = "1",
    grace: Annotated[float | None, Option(click_type=FiniteRange(0), help="Seconds to stop (Slurm: KillWait).")] = None,
    as_json: Json = False,
) -> ExitCode:
    """Show a recipe's roles, batch, memory, disk and time on given devices.

    Needs no GPU, no torch and no network. Exits 78 if the recipe can't run on
    these devices.

    Examples:
      mini-r1 plan mini-r1-3b
      mini-r1 plan my.yaml --gpus 8 --nodes 2 --gpu-memory 80
      mini-r1 plan my.yaml --gpus 8 --vllm-devices auto
    """
    from mini_r1.plan.plan_tables import print_plan
    from mini_r1.plan.recipe_plans import find_hardware, plan_for
    from mini_r1.plan.timing import grace_warning
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe

    path = find_recipe(recipe)
    hardware = find_hardware(os.environ, gpus=gpus, nodes=nodes, gpu_memory_gib=gpu_memory, recipe=path)
    made = plan_for(load_recipe(path, overrides or []), hardware, deepspeed, vllm_devices)
    warning = grace_warning(made.timing, os.environ, grace)
    if warning is not None:
        made.warnings.append(warning)
    if as_json:
        print(json.dumps({**made.to_dict(), "devices_from": hardware.source}))
    else:
        print_plan(made, Console(highlight=False), hardware.source)
    return ExitCode.CONFIG if made.errors else ExitCode.FINISHED


recipes_app = Typer(name="recipes", cls=CommandGroup)


@recipes_app.callback(invoke_without_command=True)
def recipes(
    context: Context,
    gpus: Annotated[int | None, Option(min=0, max=MAX_GPUS, help="GPUs on each node; default: this machine's.")] = None,
    nodes: Annotated[int | None, Option(min=1, max=MAX_NODES, help="With --gpus: number of nodes.")] = None,
    gpu_memory: GpuMemory = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes: which fit, hours and disk.

    Without --gpus: which fit this machine, with hours and disk on what each was
    made for. The commands below show one recipe, and describe all keys.

    Examples:
      mini-r1 recipes
      mini-r1 recipes --gpus 2 --gpu-memory 80
      mini-r1 recipes show mini-r1-3b
    """
    from mini_r1.plan.plan_tables import print_recipes
    from mini_r1.plan.recipe_plans import find_hardware, recipe_rows

    if context.invoked_subcommand is not None:
        if as_json or (gpus, nodes, gpu_memory) != (None, None, None):
            raise BadParameter(f"options go after the subcommand: `mini-r1 recipes {context.invoked_subcommand} …`")
        return
    if gpus is None and (nodes is not None or gpu_memory is not None):
        raise KitError("--nodes and --gpu-memory need --gpus")
    hardware = find_hardware(os.environ, gpus=gpus, nodes=nodes, gpu_memory_gib=gpu_memory, recipe=None)
    rows = recipe_rows(hardware, as_made=gpus is None)
    if as_json:
        print(json.dumps(rows))
    else:
        print_recipes(rows, Console(highlight=False), as_made=gpus is None)


@recipes_app.command("show")
def recipes_show(recipe: RecipeName, overrides: Set = None, as_json: Json = False) -> None:
    """Print a recipe with all keys, defaults included, and what each means.

    The output is a recipe file again.

    Examples:
      mini-r1 recipes show mini-r1-3b
      mini-r1 recipes show my.yaml --set max_steps=100 --json
      mini-r1 recipes show demo-cpu > my.yaml
    """
    from mini_r1.recipe.recipe_file import find_recipe, load_recipe
    from mini_r1.recipe.reference import annotate_recipe

    loaded = load_recipe(find_recipe(recipe), overrides or [])
    print(json.dumps(loaded.model_dump()) if as_json else annotate_recipe(loaded), end="\n" if as_json else "")


@recipes_app.command("schema")
def recipes_schema() -> None:
    """Print the JSON schema of recipe files, for editors that check YAML.

    In VS Code with the YAML extension, begin the recipe with the line
    `# yaml-language-server: $schema=recipe.schema.json`.

    Examples:
      mini-r1 recipes schema > recipe.schema.json
    """
    from mini_r1.recipe.reference import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@recipes_app.command("reference")
def recipes_reference() -> None:
    """Print the reference of all recipe keys in Markdown: docs/recipe.md.

    Examples:
      mini-r1 recipes reference > docs/recipe.md
    """
    from mini_r1.recipe.reference import recipe_reference

    print(recipe_reference(), end="")
