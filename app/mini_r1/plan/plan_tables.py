"""Plans as tables for people."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from mini_r1.console import printable
from mini_r1.plan.device_roles import describe_more_devices
from mini_r1.plan.disk_space import DiskUse
from mini_r1.plan.memory import PHASES, Memory
from mini_r1.plan.planner import Plan
from mini_r1.plan.timing import describe_ahead, describe_stop
from mini_r1.run.run_dir import KEEP_CHECKPOINTS
from mini_r1.values import GIB, duration


def summarize(plan: Plan) -> list[str]:
    """Return the two lines that a shipped recipe has in its header; a test compares them with today's plan."""
    one, several = ("process", "processes") if plan.on_cpu else ("training GPU", "training GPUs")
    workers = f"{plan.num_processes} {one if plan.num_processes == 1 else several}{' on the CPU' * plan.on_cpu}"
    vllm = f" + vLLM on {', '.join(plan.vllm_devices)}" if plan.vllm_devices else ""
    deepspeed = f"DeepSpeed {plan.deepspeed}" if plan.deepspeed else "no DeepSpeed"
    prompts = f"{plan.prompts_per_step} prompt{'s' * (plan.prompts_per_step != 1)}"
    lines = [
        f"{workers}{vllm}, {deepspeed}; {prompts} x {plan.recipe.num_generations} = "
        f"{plan.completions_per_step} completions a step"
    ]
    if plan.memory is None or plan.disk is None:
        return lines
    available = f" of {plan.gpu_memory_gib:g}" if plan.gpu_memory_gib else ""
    parts = [f"{plan.memory.total_gib:.1f}{available} GiB on each"]
    if plan.vllm is not None:
        parts.append(f"vLLM {plan.vllm.total_gib:.1f}{' of them' * (plan.roles is not None and plan.roles.shared)}")
    parts.append(f"disk {plan.disk.total:.1f} GiB" if plan.disk.total >= 0.1 else "disk below 0.1 GiB")
    if plan.timing is not None and plan.timing.hours is not None:
        parts.append(f"about {duration(plan.timing.hours * 3600)}")
    return [*lines, "; ".join(filter(None, [", ".join(parts), describe_more_devices(plan)]))]


def print_plan(plan: Plan, console: Console, source: str) -> None:
    """Print a plan, and what specifies its devices, as one page."""
    text = partial(console.print, markup=False, soft_wrap=True)  # a sentence is copied whole
    text(printable(f"{plan.recipe.model_name_or_path}: {source}"))
    if plan.roles is not None:
        for line in summarize(plan):
            text(line)
        console.print()
        console.print(_roles_table(plan), _batch_table(plan))
    if plan.memory is not None:
        console.print(_memory_table(plan.memory, plan.on_cpu))
        if plan.setup is not None and plan.setup.zero.stage and not plan.recipe.use_peft:
            zero, largest = plan.setup.zero, plan.setup.shape.largest_parameter
            text(f"Gradient buckets: {zero.buckets} of {zero.bucket:,} elements; the largest parameter has {largest:,}")
    if plan.disk is not None:
        console.print(_storage_table(plan, plan.disk))
        text(f"Host memory here: {plan.host_memory_here or 'not compared, these devices are not on this machine'}")
    if plan.timing is not None:
        timing = plan.timing
        run = f", {duration(timing.hours * 3600)} for {timing.steps:,} steps" if timing.hours is not None else ""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in timing.phases.items())
        text(f"Time, an estimate: {timing.step_s:.1f} s a step ({parts}){run}. It assumes:")
        for line in timing.assumptions:
            text(f"  {line}", style="dim")
        ahead = describe_ahead(timing)
        if ahead is not None:
            text(ahead)
        text(f"Stopping takes at most {describe_stop(timing)}")
    for warning in plan.warnings:
        text(f"warning: {printable(warning)}", style="yellow")
    for error in plan.errors:
        text(f"error: {printable(error)}", style="red")
    text("this plan cannot work" if plan.errors else "no errors; figures are estimates: docs/plan.md")


def print_recipes(rows: Sequence[Mapping[str, Any]], console: Console, *, as_made: bool) -> None:
    """Print the rows of `recipe_rows`, and under the table why recipes don't fit."""
    table = _table("Shipped recipes", ("recipe", "made for", "time", "disk, GiB", "fits"), ())
    reasons: dict[str, list[str]] = {}
    for row in rows:
        hours, disk = row["hours"], row["disk_gib"]
        shape = (
            "CPU" if "no GPU" in row["made_for"] else row["made_for"].removeprefix("1 node x ").replace(" of ", ", ")
        )
        time = "?" if hours is None else duration(hours * 3600)
        table.add_row(row["name"], shape, time, "?" if disk is None else f"{disk:.0f}", "yes" if row["fits"] else "no")
        for error in row["errors"]:
            reasons.setdefault(error, []).append(row["name"])
    console.print(table)
    text = partial(console.print, markup=False, soft_wrap=True)
    made = "fits is for {}; time and disk are for what each recipe was made for"
    text((made if as_made else "fits, time and disk are for {}").format(printable(rows[0]["fits_on"])))
    for error, names in reasons.items():
        text(f"{', '.join(names)}: {printable(error)}")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _roles_table(plan: Plan) -> Table:
    rows = []
    for node in plan.roles.nodes if plan.roles else ():
        ranks = f"{node.ranks.start}-{node.ranks.stop - 1}" if node.workers > 1 else str(node.first_rank)
        devices = ", ".join(node.training_devices) or "CPU"
        rows.append(
            (
                str(node.index),
                str(node.workers),
                ranks,
                printable(devices),
                printable(", ".join(node.vllm_devices) or "-"),
            )
        )
    return _table("Roles", ("node", "workers", "ranks", "training devices", "vLLM"), rows)


def _batch_table(plan: Plan) -> Table:
    each_step = {
        "steps": 1,
        "prompts": plan.prompts_per_step,
        "completions": plan.completions_per_step,
        "tokens generated, at most": plan.tokens_per_step,
    }
    rows = [
        (name, f"{each:,}", "?" if plan.steps is None else f"{each * plan.steps:,}") for name, each in each_step.items()
    ]
    return _table("Batch", ("", "optimizer step", "run"), rows)


def _memory_table(memory: Memory, on_cpu: bool) -> Table:
    device = "Each process on the CPU" if on_cpu else "Each training GPU"
    rows = [
        (item.name, *(_gib(item.bytes) if phase in item.phases else "" for phase in PHASES)) for item in memory.items
    ]
    table = _table(f"{device}, GiB at most", ("", *PHASES), rows)
    table.add_section()
    table.add_row("together", *(f"{memory.at(phase):.2f}" for phase in PHASES))
    if memory.available_gib is not None:
        table.add_row("the GPU has", *([f"{memory.available_gib:.2f}"] * len(PHASES)))
    return table


def _storage_table(plan: Plan, disk: DiskUse) -> Table:
    vllm = plan.vllm
    rows = []
    if vllm is not None:
        fit = "?" if vllm.sequences is None else f"{vllm.sequences:,}"
        rows += [(f"vLLM: {item.name}", _gib(item.bytes)) for item in vllm.items]
        rows.append(("vLLM: sequences that the cache holds", fit))
    kept = f"{KEEP_CHECKPOINTS} kept and one being written"
    rows += [
        ("host memory, node 0", f"{plan.host_memory_gib:.1f}"),
        ("shared memory (/dev/shm)", f"{plan.shm_gib:.2f}"),
        (f"disk: checkpoints of {disk.checkpoint:.2f}, {kept}", f"{disk.checkpoints:.1f}"),
        (f"disk: snapshots of {disk.snapshot:.2f}, every save", f"{disk.snapshots:.1f}"),
        ("disk: completions", f"{disk.completions:.1f}"),
    ]
    return _table("vLLM's GPU, host and disk, GiB" if vllm else "Host and disk, GiB", ("", ""), rows)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.005 * GIB else "<0.01"
