"""The shipped recipes: each works on the hardware it was made for, and its header has today's plan."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.roles import shape
from mini_r1.plan.plan_tables import summarize
from mini_r1.plan.recipe_plans import VARIANTS, Hardware, declared_hardware, find_largest_fitting, plan_for
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import load_recipe
from mini_r1.recipe.shipped_files import shipped_files

from tests.conftest import ASSETS

Kit = Callable[..., subprocess.CompletedProcess[str]]

SHIPPED = shipped_files("recipes")


def at(gpus: int, gib: float | None = None, nodes: int = 1) -> Hardware:
    return Hardware(shape(gpus, nodes), gpus == 0, gib, "these devices")


def different(one: Recipe, other: Recipe) -> set[str]:
    before, after = one.model_dump(), other.model_dump()
    return {key for key in before if before[key] != after[key]}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_works_on_the_hardware_it_was_made_for(name: str, mini_r1: Kit) -> None:
    """Run the command of a user, with the shape of its header."""
    found = re.search(
        r"^# Shape: (?:(\d+) nodes? x (\d+) GPUs? of (\d+) GiB|1 node, no GPU)$", SHIPPED[name].read_text(), re.M
    )
    assert found, "its header names no shape"
    nodes, gpus, gib = (found[1] or "1", found[2] or "0", found[3])
    done = mini_r1("plan", name, "--nodes", nodes, "--gpus", gpus, *(["--gpu-memory", gib] if gib else []), "--json")
    assert done.returncode == 0, done.stdout
    plan = json.loads(done.stdout)
    assert plan["errors"] == []
    # A shipped recipe has no warnings.
    assert plan["warnings"] == []
    assert plan["num_processes"] == max(1, int(nodes) * int(gpus) - len(plan["vllm_devices"]))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_header_has_today_s_plan(name: str) -> None:
    place = declared_hardware(SHIPPED[name])
    assert place is not None
    header = [
        line.removeprefix("# Plan: ") for line in SHIPPED[name].read_text().splitlines() if line.startswith("# Plan: ")
    ]
    assert header == summarize(plan_for(load_recipe(SHIPPED[name]), place))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_header_names_its_source_and_fits_the_page(name: str) -> None:
    lines = SHIPPED[name].read_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert any(line.startswith(("# Source: ", "# The original's notebook")) for line in lines)


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("mini-r1-3b", at(1, 80, 2), "node 0 has 1 GPU"),
        ("mini-r1-3b", at(4, 3), "does not fit"),
        ("mini-r1-3b-g64", at(4, 12), "raise vllm_gpu_memory_utilization"),
        ("mini-r1-1.5b", at(1, 12), "and a rollout runs 192 at once"),
        ("mini-r1-7b", at(8, 16, 2), "leaves too little of 16 GiB"),
        ("lora-1.5b", at(1, 6), "does not fit"),
        ("qlora-notebook", at(0), "use_vllm: true, but there is no GPU"),
    ],
)
def test_on_less_hardware_the_error_names_what_does_not_fit(name: str, place: Hardware, said: str) -> None:
    plan = plan_for(load_recipe(SHIPPED[name]), place)
    assert any(said in error for error in plan.errors), plan.errors


def test_mini_r1_3b_is_the_published_recipe_without_pushing() -> None:
    kit, published = load_recipe(SHIPPED["mini-r1-3b"]), load_recipe(ASSETS / "recipes" / "published-3b.yaml")
    assert different(kit, published) == {"push_to_hub", "output_dir", "vllm_device"}
    assert kit.push_to_hub is False


def test_mini_r1_3b_g64_changes_only_num_generations() -> None:
    kit, other = load_recipe(SHIPPED["mini-r1-3b"]), load_recipe(SHIPPED["mini-r1-3b-g64"])
    assert different(kit, other) == {"num_generations"}
    assert other.num_generations == 64


def test_mini_r1_3b_overlap_changes_only_when_the_rollout_takes_place_and_the_loss() -> None:
    kit, other = load_recipe(SHIPPED["mini-r1-3b"]), load_recipe(SHIPPED["mini-r1-3b-overlap"])
    assert different(kit, other) == {"rollout_ahead", "off_policy"}
    assert (other.rollout_ahead, other.off_policy) == (1, "tis")


# --- the list ---


def test_the_list_has_every_recipe_with_hours_and_disk(mini_r1: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a laptop
    rows = {row["name"]: row for row in json.loads(mini_r1("recipes", "--json").stdout)}
    assert set(rows) == set(SHIPPED)
    assert {name for name, row in rows.items() if row["fits"]} == {"demo-cpu", "lora-cpu", "qa-cpu"}
    assert rows["mini-r1-7b"]["errors"] == ["made for GPUs, and there is none"]
    assert {row["fits_on"] for row in rows.values()} == {"the CPU (no GPU here)"}
    assert rows["mini-r1-3b"]["made_for"] == "1 node x 4 GPUs of 80 GiB"
    assert rows["mini-r1-3b"]["hours"] > 1
    assert rows["mini-r1-3b"]["disk_gib"] > 100
    table = mini_r1("recipes")
    assert table.returncode == 0
    assert "fits is for the CPU (no GPU here); time and disk are for what each recipe was made for" in table.stdout
    for name in SHIPPED:
        assert name in table.stdout


def test_the_list_for_given_devices_has_errors_for_what_does_not_fit(mini_r1: Kit) -> None:
    done = mini_r1("recipes", "--gpus", "1", "--gpu-memory", "24", "--json")
    assert done.returncode == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["lora-1.5b"]["fits"]
    assert not rows["mini-r1-7b"]["fits"]
    assert "does not fit" in rows["mini-r1-7b"]["errors"][0]
    table = mini_r1("recipes", "--gpus", "1", "--nodes", "2").stdout
    assert "fits, time and disk are for the options" in table
    assert "use_vllm: true, but node 0 has 1 GPU" in table
    lonely = mini_r1("recipes", "--gpu-memory", "24")
    assert lonely.returncode == 78
    assert "need --gpus" in lonely.stderr


# --- launch auto ---


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (at(0), "demo-cpu"),
        (at(1, 24), "lora-1.5b"),
        (at(1, 8), "qlora-notebook"),
        (at(2, 80), "mini-r1-1.5b"),
        (at(4, 80), "mini-r1-3b"),
        (at(8, 80), "mini-r1-3b-8gpu"),
        (at(8, 80, 2), "mini-r1-7b"),
        (at(4, 16), "mini-r1-3b"),
    ],
)
def test_the_largest_recipe_that_fits_is_found(place: Hardware, name: str) -> None:
    path, reason = find_largest_fitting(place)
    assert path.stem == name
    assert f"{name} is the largest shipped recipe that fits (these devices)" in reason
    assert "completions a step" in reason


def test_variants_are_shipped() -> None:
    assert set(VARIANTS) <= set(SHIPPED)


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(KitError, match="no shipped recipe fits these devices"):
        find_largest_fitting(at(1, 1))


def test_a_recipe_without_a_header_declares_no_hardware(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model_name_or_path: builtin:demo\n")
    assert declared_hardware(path) is None
    assert declared_hardware(tmp_path / "none.yaml") is None
