"""`mini-r1 plan`: its figures for a recipe on given devices, and everything that it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mini_r1.machine.control_groups import compare_memory
from mini_r1.machine.nvidia import Driver, Gpu
from mini_r1.machine.roles import assign, shape
from mini_r1.plan import recipe_plans
from mini_r1.plan.plan_errors import LOST_BELOW
from mini_r1.plan.plan_tables import print_plan
from mini_r1.plan.planner import HUB_ROWS, Plan, choose_deepspeed, count_steps, make_plan
from mini_r1.plan.recipe_plans import Hardware, find_hardware, plan_for
from mini_r1.plan.shapes import KNOWN
from mini_r1.plan.training_setup import TrainingSetup
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.recipe_file import find_recipe, load_recipe
from rich.console import Console

from tests.conftest import ASSETS, REPO

Kit = Callable[..., subprocess.CompletedProcess[str]]

PUBLISHED_FILE = ASSETS / "recipes" / "published-3b.yaml"
PUBLISHED = load_recipe(PUBLISHED_FILE)
DEMO = load_recipe(find_recipe("demo-cpu"))


def recipe(base: Recipe = PUBLISHED, **changes: Any) -> Recipe:
    return Recipe.model_validate({**base.model_dump(), **changes})


def planned(made: Recipe, gpus: int = 4, nodes: int = 1, gib: float | None = 80, deepspeed: str = "auto") -> Plan:
    roles = assign(shape(gpus, nodes), use_vllm=made.use_vllm, on_cpu=gpus == 0)
    return make_plan(made, roles, gpu_memory_gib=gib, on_cpu=gpus == 0, deepspeed=deepspeed)


def refusal(plan: Plan) -> str:
    """Return the only error of a plan."""
    (error,) = plan.errors
    return error


# --- figures ---


def test_the_published_recipe_on_four_gpus() -> None:
    plan = planned(PUBLISHED)
    assert plan.errors == []
    assert (plan.num_processes, plan.vllm_devices, plan.deepspeed) == (3, ("cuda:3",), "zero2")
    assert (plan.prompts_per_step, plan.completions_per_step, plan.steps) == (24, 192, 450)
    found = plan.to_dict()
    assert [node["workers"] for node in found["nodes"]] == [3]
    assert found["max_tokens"] == 450 * 192 * 1024
    memory = found["memory_gib"]["training_device"]
    assert memory["total"] == max(memory["by_phase"].values()) < 80
    assert found["disk_gib"]["total"] > 100
    assert found["memory_gib"]["vllm_device"]["sequences_that_fit"] > 192


def test_the_bucket_of_zero2_is_shown_and_one_of_the_user_s_that_is_too_small_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(PUBLISHED)
    found = plan.to_dict()
    assert found["gradient_bucket"] == found["largest_parameter"] == 151_936 * 2_048
    print_plan(plan, Console(), "a test")
    assert (
        "Gradient buckets: 2 of 311,164,928 elements; the largest parameter has 311,164,928" in capsys.readouterr().out
    )
    assert not any("bucket" in warning for warning in plan.warnings)

    values = find_deepspeed("zero2").values
    values["zero_optimization"]["reduce_bucket_size"] = 1_000
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(values))
    plan = planned(PUBLISHED, deepspeed=str(own))
    assert plan.errors == []
    (warning,) = [warning for warning in plan.warnings if "bucket" in warning]
    assert "is 1,000, and the model's largest parameter has 311,164,928" in warning
    assert plan.to_dict()["gradient_bucket"] == 1_000
    adapter = recipe(use_peft=True, use_vllm=False)
    assert not any("bucket" in warning for warning in planned(adapter, deepspeed=str(own)).warnings)


@pytest.mark.parametrize(("hang", "fits"), [(1_799, True), (1_800, False), (3_600, False)])
def test_a_hang_is_found_before_waiting_workers_give_up(hang: int, fits: bool) -> None:
    made = recipe(hang_timeout_s=hang)
    assert (planned(made).errors == []) == fits
    if not fits:
        assert f"hang_timeout_s is {hang} and ddp_timeout 1800" in refusal(planned(made))
        assert f"ddp_timeout: {hang * 3 // 2}" in refusal(planned(made))
    assert planned(made, 2).errors == []  # one worker waits for no other


def test_two_nodes_have_one_vllm() -> None:
    plan = planned(recipe(model_name_or_path="Qwen/Qwen2.5-7B-Instruct"), 8, 2)
    assert plan.errors == []
    assert (plan.num_processes, plan.vllm_devices) == (15, ("cuda:7",))
    assert [node["workers"] for node in plan.to_dict()["nodes"]] == [7, 8]


def test_the_demo_on_a_cpu() -> None:
    plan = planned(DEMO, 0, gib=None)
    assert (plan.errors, plan.num_processes, plan.vllm_devices, plan.deepspeed) == ([], 1, (), None)
    assert plan.completions_per_step == 512


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": -1, "num_train_epochs": 1}, 1875),  # 45,000 rows / 24 prompts
        ({"max_steps": -1, "num_train_epochs": 2, "dataset_id_or_path": "generated", "dataset_rows": 480}, 36),
        ({"max_steps": -1, "num_train_epochs": 1, "dataset_rows": None}, -(-HUB_ROWS * 9 // 240)),
        ({"max_steps": -1, "dataset_id_or_path": "rows.jsonl"}, None),
        ({"max_steps": -1, "dataset_id_or_path": "owner/other"}, None),
    ],
)
def test_steps_are_counted_if_the_data_are_known(changes: dict[str, Any], steps: int | None) -> None:
    assert count_steps(recipe(**changes), 3) == steps
    plan = planned(recipe(**changes))
    assert plan.steps == steps
    assert any("depends on the data" in warning for warning in plan.warnings) == (steps is None)


# --- DeepSpeed ---


@pytest.mark.parametrize(
    ("changes", "workers", "gib", "chosen"),
    [
        ({}, 3, 80, "zero2"),
        ({}, 1, 80, "zero2"),  # bfloat16 weights need the float32 ones that ZeRO keeps
        ({}, 3, 30, "zero3"),
        ({}, 3, 12, "zero3-offload"),
        ({}, 3, 4, "zero3-offload"),
        ({}, 3, None, "zero2"),
        ({"torch_dtype": "float32"}, 1, 80, None),
        ({"torch_dtype": "float32"}, 1, 60, "zero3-offload"),
        ({"torch_dtype": "float32"}, 2, 80, "zero2"),
        ({"use_vllm": False, "use_peft": True}, 4, 80, None),
    ],
)
def test_deepspeed_is_the_fastest_that_fits(
    changes: dict[str, Any], workers: int, gib: float | None, chosen: str | None
) -> None:
    made = recipe(**changes)
    setup = TrainingSetup(made, KNOWN[made.model_name_or_path], workers, gpu_memory_gib=gib)
    assert choose_deepspeed(made, setup, on_cpu=False) == chosen


def test_no_deepspeed_on_a_cpu_unless_it_is_named() -> None:
    assert planned(DEMO, 0, gib=None).deepspeed is None
    assert planned(DEMO, 0, gib=None, deepspeed="zero3").deepspeed == "zero3"


def test_a_deepspeed_that_does_not_exist_is_an_error() -> None:
    assert "did you mean 'zero3'?" in refusal(planned(PUBLISHED, deepspeed="zero33"))


# --- what cannot work ---


@pytest.mark.parametrize(
    ("changes", "gib", "said"),
    [
        ({"gradient_checkpointing": False, "max_completion_length": 16_384}, 80, "gradient_checkpointing: true"),
        ({"num_generations": 256}, 40, "num_generations: 8"),
        ({"max_tokens_per_micro_batch": 10**6, "num_generations": 64}, 80, "max_tokens_per_micro_batch: null"),
        ({"num_generations": 64, "max_completion_length": 16_384}, 30, "together"),
        ({}, 2, "take more or larger GPUs, or a smaller model, use_peft: true"),
    ],
)
def test_a_plan_that_does_not_fit_advises_changes(changes: dict[str, Any], gib: float, said: str) -> None:
    plan = planned(recipe(use_vllm=False, **changes), gib=gib)
    error = refusal(plan)
    assert error.startswith("does not fit: a training GPU needs ")
    assert "largest: " in error
    assert said in error


def test_the_advised_change_makes_it_fit() -> None:
    large = {"max_completion_length": 16_384, "gradient_checkpointing": False}
    assert "it fits with gradient_checkpointing: true" in refusal(planned(recipe(**large)))
    assert planned(recipe(**{**large, "gradient_checkpointing": True})).errors == []


def test_a_named_deepspeed_that_does_not_fit_names_the_one_that_does() -> None:
    assert "--deepspeed zero3" in refusal(planned(PUBLISHED, gib=30, deepspeed="zero2"))
    assert planned(PUBLISHED, gib=30, deepspeed="zero3").errors == []


def test_a_cache_that_holds_no_sequence_is_an_error_with_a_larger_share() -> None:
    plan = planned(recipe(vllm_gpu_memory_utilization=0.08))
    assert "raise vllm_gpu_memory_utilization from 0.08 to 0.8" in refusal(plan)
    small = planned(recipe(model_name_or_path="Qwen/Qwen2.5-7B-Instruct"), 8, gib=16)
    assert any("leaves too little of 16 GiB: take larger GPUs" in error for error in small.errors)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_head_size_that_vllm_cannot_run_is_refused(on_cpu: bool) -> None:
    roles = assign(shape(2, 1), use_vllm=True, on_cpu=on_cpu)
    plan = make_plan(recipe(DEMO, use_vllm=True), roles, gpu_memory_gib=80, on_cpu=on_cpu)
    assert "its attention heads have 16 values" in refusal(plan)
    assert "set use_vllm: false, or take another model" in refusal(plan)
    assert plan.vllm_devices == ("cpu" if on_cpu else "cuda:1",)


def test_lengths_above_the_model_s_positions_are_refused() -> None:
    assert "positions for 512: lower max_completion_length to 448 or less" in refusal(
        planned(recipe(DEMO, max_completion_length=500), 0)
    )
    assert planned(recipe(DEMO, max_completion_length=448), 0).errors == []
    assert "lower both" in refusal(planned(recipe(DEMO, max_prompt_length=600), 0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_peft": True, "load_in_4bit": True}, "load_in_4bit needs an NVIDIA GPU and bitsandbytes"),
        ({"use_peft": True, "load_in_8bit": True}, "load_in_8bit needs an NVIDIA GPU and bitsandbytes"),
        ({"attn_implementation": "flash_attention_2", "bf16": True}, "set attn_implementation: sdpa"),
        ({"fp16": True}, "fp16 needs a GPU: set fp16: false"),
        ({"optim": "adamw_8bit"}, "set optim: adamw_torch"),
        ({"optim": "paged_adamw_32bit"}, "set optim: adamw_torch"),
    ],
)
def test_settings_that_need_a_gpu_are_refused_on_a_cpu(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(planned(recipe(DEMO, **changes), 0))
    assert planned(recipe(DEMO, **changes), 1).errors == []


def test_tf32_on_a_cpu_is_a_warning() -> None:
    plan = planned(recipe(DEMO, tf32=True), 0)
    assert plan.errors == []
    assert "tf32 is a GPU setting: it has no effect on a CPU" in plan.warnings


def test_deepspeed_with_quantized_weights_is_refused() -> None:
    made = recipe(use_vllm=False, use_peft=True, load_in_4bit=True)
    assert planned(made, 1).errors == []
    assert "DeepSpeed cannot shard quantized weights" in refusal(planned(made, 1, deepspeed="zero2"))


def test_float32_gradients_without_deepspeed_are_a_warning() -> None:
    made = recipe(grad_accum_dtype="fp32")
    assert planned(made).warnings == planned(PUBLISHED).warnings
    assert any(
        "grad_accum_dtype has no effect without DeepSpeed" in w for w in planned(made, deepspeed="none").warnings
    )


def test_a_learning_rate_that_bfloat16_rounds_away_is_a_warning() -> None:
    def warned(deepspeed: str, rate: float) -> bool:
        plan = planned(recipe(use_vllm=False, learning_rate=rate), deepspeed=deepspeed)
        return any("round to nothing" in warning for warning in plan.warnings)

    assert warned("none", 5e-7)
    assert not warned("zero2", 5e-7)
    assert not warned("none", 1e-3)


def test_below_that_rate_an_update_of_a_typical_weight_really_is_lost() -> None:
    torch = pytest.importorskip("torch")

    weight = torch.full((1,), 0.02, dtype=torch.bfloat16)
    assert weight - 0.4 * LOST_BELOW == weight
    assert weight - 4 * LOST_BELOW != weight


def test_an_unknown_model_is_planned_without_figures() -> None:
    plan = planned(recipe(model_name_or_path="Qwen/Qwen2.5-3B-Instuct"))
    assert plan.errors == []
    assert (plan.memory, plan.disk, plan.timing) == (None, None, None)
    assert (plan.num_processes, plan.completions_per_step) == (3, 192)
    assert any("did you mean 'Qwen/Qwen2.5-3B-Instruct'?" in warning for warning in plan.warnings)


def test_unknown_gpu_memory_is_a_warning() -> None:
    plan = planned(PUBLISHED, gib=None)
    assert plan.errors == []
    assert any("give --gpu-memory" in warning for warning in plan.warnings)


# --- devices ---


def test_devices_come_from_options_then_this_machine_then_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"CUDA_VISIBLE_DEVICES": ""}
    path = find_recipe("mini-r1-3b")
    asked = find_hardware(nothing, gpus=2, nodes=3, gpu_memory_gib=40, recipe=path)
    assert (asked.devices, asked.gpu_memory_gib, asked.on_cpu) == ([["0", "1"]] * 3, 40, False)
    # A GPU as the NVIDIA library would report it.
    driver = Driver("550.54.14", (12, 4), gpus=tuple(Gpu(str(i), "made up", (9, 0), 40 * 2**30, 0) for i in range(2)))
    slurm = {"SLURM_GPUS_ON_NODE": "2"}
    monkeypatch.setattr(recipe_plans, "read_driver", lambda ids: driver)
    here = find_hardware(slurm, gpus=None, nodes=None, gpu_memory_gib=None, recipe=path)
    assert (here.gpu_memory_gib, here.gpus) == (40, 2)
    assert "SLURM_GPUS_ON_NODE=2" in here.source
    own = find_hardware(nothing, gpus=None, nodes=None, gpu_memory_gib=None, recipe=path)
    assert (own.devices, own.gpu_memory_gib) == ([["0", "1", "2", "3"]], 80)
    assert "the shape in the header of mini-r1-3b.yaml: 1 node x 4 GPUs of 80 GiB" in own.source
    none = find_hardware(nothing, gpus=None, nodes=None, gpu_memory_gib=None, recipe=PUBLISHED_FILE)
    assert (none.devices, none.on_cpu) == ([[]], True)
    slots = {"MINI_R1_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "0,1,2"}
    cpu = find_hardware(slots, gpus=None, nodes=None, gpu_memory_gib=None, recipe=path)
    assert (len(cpu.devices[0]), cpu.on_cpu, cpu.gpus) == (3, True, 0)
    assert find_hardware(slots, gpus=2, nodes=None, gpu_memory_gib=None, recipe=path).on_cpu


@pytest.mark.parametrize(
    ("need", "found"),
    [
        (30, "40.0 of 60.0 GiB free (this job's control group)"),
        (55, "host memory: 40.0 of 60.0 GiB free (this job's control group), the plan needs 55.0: check what else"),
        (61, "host memory: 40.0 of 60.0 GiB free (this job's control group), the plan needs 61.0: give the job more"),
    ],
)
def test_host_memory_is_compared_as_a_launch_would(monkeypatch: pytest.MonkeyPatch, need: float, found: str) -> None:
    kernel = {
        "proc/meminfo": "MemTotal: 104857600 kB\nMemAvailable: 52428800 kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": str(60 * 2**30),
        "sys/fs/cgroup/memory.current": str(20 * 2**30),
    }
    compare = partial(compare_memory, read=lambda path: kernel.get(path.replace("//", "/")))
    monkeypatch.setattr(recipe_plans, "compare_memory", lambda _: compare(need))
    plan = plan_for(recipe(DEMO), Hardware([[]], True, None, "a test", here=True))
    assert plan.host_memory_here is not None
    assert any(text.startswith(found) for text in (plan.host_memory_here, *plan.warnings, *plan.errors))
    assert bool(plan.errors) == (need > 60)
    assert plan_for(recipe(DEMO), Hardware([[]], True, None, "another machine")).host_memory_here is None


@pytest.mark.parametrize(("gpus", "here"), [(0, True), (2, True), (3, False), (None, True)])
def test_memory_is_compared_if_this_machine_has_the_devices(
    monkeypatch: pytest.MonkeyPatch, gpus: int | None, here: bool
) -> None:
    monkeypatch.setattr(recipe_plans, "list_gpus", lambda: [object()] * 2)
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    found = find_hardware(environment, gpus=gpus, nodes=None, gpu_memory_gib=80, recipe=None)
    assert found.here == here
    assumed = find_hardware(environment, gpus=None, nodes=None, gpu_memory_gib=None, recipe=find_recipe("mini-r1-3b"))
    assert not assumed.here


def test_a_plan_for_this_machine_says_what_memory_is_here(mini_r1: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert re.search(r"Host memory here: [\d.]+ of [\d.]+ GiB free", mini_r1("plan", "demo-cpu").stdout)
    other = mini_r1("plan", "mini-r1-3b", "--gpus", "64").stdout
    assert "Host memory here: not compared, these devices are not on this machine" in other


def test_roles_that_cannot_be_assigned_are_an_error_of_the_plan() -> None:
    place = find_hardware({}, gpus=1, nodes=2, gpu_memory_gib=80, recipe=None)
    plan = plan_for(PUBLISHED, place)
    assert "set use_vllm: false (--set use_vllm=false)" in refusal(plan)
    assert plan.to_dict()["nodes"] == []


# --- command ---


def test_the_page_has_everything_and_exits_0(mini_r1: Kit) -> None:
    done = mini_r1("plan", PUBLISHED_FILE, "--gpus", "4", "--gpu-memory", "80")
    assert done.returncode == 0, done.stderr
    parts = ["3 training GPUs + vLLM on cuda:3", "192 completions a step", "Roles", "Batch", "optimizer states"]
    for part in [
        *parts,
        "key-value cache",
        "host memory",
        "/dev/shm",
        "snapshots",
        "an estimate",
        "vllm_device is ignored",
    ]:
        assert part in done.stdout, part
    assert len(done.stdout.splitlines()) < 68, "no longer one page"


def test_json_is_alone_on_standard_output_also_for_a_plan_that_cannot_work(mini_r1: Kit) -> None:
    good = json.loads(mini_r1("plan", PUBLISHED_FILE, "--gpus", "4", "--gpu-memory", "80", "--json").stdout)
    assert good["num_processes"] == 3
    assert good["vllm_devices"] == ["cuda:3"]
    assert good["nodes"][0]["workers"] == 3
    assert good["completions_per_step"] == 192
    assert good["memory_gib"]["training_device"]["total"] > 20
    assert good["disk_gib"]["total"] > 100
    assert good["errors"] == []
    bad = mini_r1("plan", PUBLISHED_FILE, "--gpus", "1", "--vllm-devices", "2", "--json")
    assert bad.returncode == 78
    found = json.loads(bad.stdout)
    assert set(found) == set(good)
    assert "--vllm-devices 2, but there is 1 GPU" in found["errors"][0]
    wrong = mini_r1("plan", PUBLISHED_FILE, "--set", "num_generations=1", "--json")
    assert wrong.returncode == 78
    assert "must be at least 2" in json.loads(wrong.stdout)["error"]


def test_a_plan_that_cannot_work_exits_78_with_the_reason(mini_r1: Kit) -> None:
    large = ["--set", "max_completion_length=16384", "--set", "gradient_checkpointing=false"]
    done = mini_r1("plan", PUBLISHED_FILE, "--gpus", "4", "--gpu-memory", "80", *large)
    assert done.returncode == 78
    assert "it fits with gradient_checkpointing: true" in done.stdout
    assert "this plan cannot work" in done.stdout
    qwen3 = mini_r1("plan", PUBLISHED_FILE, "--gpus", "4", "--set", "model_name_or_path=Qwen/Qwen3-1.7B")
    assert qwen3.returncode == 78
    assert "transformers 4.51.0 was the first that does" in qwen3.stdout


@pytest.mark.parametrize("command", ["plan", "recipes"])
def test_the_commands_have_help_with_an_example(mini_r1: Kit, command: str) -> None:
    done = mini_r1(command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"mini-r1 {command} " in done.stdout


def test_hostile_names_stay_text(mini_r1: Kit) -> None:
    done = mini_r1("plan", PUBLISHED_FILE, "--gpus", "4", "--set", 'model_name_or_path="[red]a[/red]b"')
    assert done.returncode == 0, done.stderr
    assert "[red]a[/red]b" in done.stdout


def test_a_plan_uses_neither_torch_nor_the_network() -> None:
    """Sockets that connect anywhere are refused; what the command imported is counted at its end."""
    heavy = ["accelerate", "datasets", "deepspeed", "numpy", "peft", "torch", "transformers", "trl", "vllm"]
    code = f"""
import atexit, socket, sys
def refuse(*args): raise AssertionError("asked the network")
socket.socket.connect = refuse
atexit.register(lambda: print("loaded", *sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr))
from mini_r1.cli.app import main
sys.argv = ["mini-r1", "plan", {str(PUBLISHED_FILE)!r}, "--gpus", "4", "--gpu-memory", "80",
            "--set", "model_name_or_path=somebody/unknown"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["loaded"]
    assert "the shape of somebody/unknown is not known here" in done.stdout


def test_errors_in_a_recipe_are_reported_as_everywhere(mini_r1: Kit, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model_name_or_path: builtin:demo\nscale_reward: true\n")
    done = mini_r1("plan", path)
    assert done.returncode == 78
    assert "unknown key 'scale_reward'" in done.stderr
