"""What a command does before its imports are done: its first line, what it refuses by then, what it never imports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import KitError
from mini_r1.machine.heavy_imports import needs_extra
from mini_r1.recipe.recipe_file import dump_recipe, load_recipe
from mini_r1.run.files import write_json
from mini_r1.run.finished import finished_step_before_loading
from mini_r1.run.manifest import seal
from mini_r1.run.run_dir import RunDir

from tests.conftest import REPO

# Python's own -X importtime writes a line to stderr when an import is over; this writes one when it begins.
WATCHED = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "deepspeed", "vllm"):
            print("importing", name, file=sys.stderr, flush=True)
            if name == os.environ.get("LAST_IMPORT"):
                os._exit(0)
sys.meta_path.insert(0, Watch())
from mini_r1.cli.app import main
main()
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `mini-r1 ARGS` in an empty folder; `importing NAME` on stderr shows when a heavy import begins."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
        settings = {**os.environ, "MINI_R1_CACHE": str(tmp_path / "cache"), **environment}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, timeout=300)

    return run


def a_run_with_a_step(path: Path, recipe: Path, **facts: int) -> RunDir:
    """Make the files of a run with a checkpoint that a new start reads."""
    run = RunDir(path)
    run.checkpoints.mkdir(parents=True)
    run.recipe_file.write_text(dump_recipe(load_recipe(recipe)))
    (run.checkpoints / "part").mkdir()
    (run.checkpoints / "part" / "weights").write_text("")
    seal(
        run.checkpoints / "part", run.checkpoints / "step-2", run_id="x", **{"world_size": 1, "zero_stage": 0, **facts}
    )
    return run


@pytest.mark.parametrize("command", ["train", "launch"])
def test_a_run_of_another_recipe_is_refused_without_torch(
    start: Callable[..., subprocess.CompletedProcess[str]],
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    command: str,
) -> None:
    run = a_run_with_a_step(tmp_path / "run", small_recipe("first"))
    other = small_recipe("other", learning_rate=2e-3)
    done = start(command, other, "--run-dir", run.path, MINI_R1_ACCELERATOR="cpu")
    assert done.returncode == 78, done.stderr
    assert "learning_rate: the run has 0.001, the recipe has 0.002" in done.stderr
    assert "importing" not in done.stderr


WORKER = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("command", "environment", "facts", "said"),
    [
        (("train",), {}, {"world_size": 3, "zero_stage": 3}, "was written with DeepSpeed ZeRO-3, and now it is none"),
        (("launch",), {}, {"world_size": 3, "zero_stage": 3}, "was written with DeepSpeed ZeRO-3, and now it is none"),
        (("train", "--deepspeed", "zero2"), WORKER, {"world_size": 3, "zero_stage": 2}, "start with 3 workers again"),
        (
            ("launch", "--gpus", "2", "--deepspeed", "zero2"), {}, {"world_size": 3, "zero_stage": 2},
            "start with 3 workers again",
        ),
        (("train",), WORKER, {"world_size": 1}, "has 3 prompts, and 2 workers"),
        (("launch", "--gpus", "2"), {}, {"world_size": 1}, "has 3 prompts, and 2 workers"),
        (("train", "--set", "learning_rate=1"), WORKER, {}, "learning_rate: the run has 0.001, the recipe has 1.0"),
        (("train", "--set", "use_vllm=true"), WORKER, {}, "use_vllm: true, but there is no GPU"),
        (("train", "--config", "demo-cpu"), {}, {}, "Name one recipe"),
    ],
)  # fmt: skip
def test_what_cannot_resume_a_run_is_refused_without_torch(
    start: Callable[..., subprocess.CompletedProcess[str]],
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    command: tuple[str, ...],
    environment: dict[str, str],
    facts: dict[str, int],
    said: str,
) -> None:
    recipe = small_recipe("first", per_device_train_batch_size=1, gradient_accumulation_steps=3)
    run = a_run_with_a_step(tmp_path / "run", recipe, **facts)
    write_json(run.run_file, {"run_id": "x", "prompts_per_step": 3})
    name, *options = command
    done = start(name, recipe, "--run-dir", run.path, *options, MINI_R1_ACCELERATOR="cpu", **environment)
    assert done.returncode == 78, done.stderr
    assert said in done.stderr
    assert "importing" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train", "launch"])
def test_a_run_directory_in_use_is_refused_without_torch(
    start: Callable[..., subprocess.CompletedProcess[str]],
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    command: str,
) -> None:
    recipe = small_recipe()
    run = a_run_with_a_step(tmp_path / "run", recipe)
    with run.claim():
        done = start(command, recipe, "--run-dir", run.path, MINI_R1_ACCELERATOR="cpu")
    assert done.returncode == 78, done.stderr
    assert "another process is training in" in done.stderr
    assert "importing" not in done.stderr


def test_a_job_that_waits_for_the_run_it_resumes_stops_on_a_signal(
    small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = small_recipe()
    run = a_run_with_a_step(tmp_path / "run", recipe)
    words = [sys.executable, "-m", "mini_r1", "launch", recipe, "--run-dir", run.path]
    settings = {**os.environ, "MINI_R1_ACCELERATOR": "cpu", "MINI_R1_JOB_ID": "7", "MINI_R1_WAIT_MINUTES": "1"}
    with run.claim(), subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings) as waiting:
        assert waiting.stderr is not None
        try:
            assert any(b"waiting up to 1 minutes" in line for line in waiting.stderr)
            waiting.send_signal(signal.SIGTERM)
            output, _ = waiting.communicate(timeout=20)
        finally:
            waiting.kill()
    assert waiting.returncode == 143
    assert not output


def test_an_empty_run_directory_is_left_as_it_is(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """A volume may be mounted there."""
    run = RunDir(tmp_path / "run")
    recipe = load_recipe(small_recipe())
    assert finished_step_before_loading(run, recipe) is None
    run.path.mkdir()
    before = run.path.stat().st_ino
    assert finished_step_before_loading(run, recipe) is None
    assert run.path.stat().st_ino == before
    assert not list(run.path.iterdir())
    other = RunDir(tmp_path / "file")
    other.path.write_text("")
    with pytest.raises(KitError, match="cannot use .* as run directory: "):
        finished_step_before_loading(other, recipe)


def test_a_finished_run_is_finished_without_torch(
    start: Callable[..., subprocess.CompletedProcess[str]], small_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = small_recipe()
    run = a_run_with_a_step(tmp_path / "run", recipe)
    write_json(run.state_file, {"state": "finished", "step": 4})
    done = start("train", recipe, "--run-dir", run.path)
    assert done.returncode == 0, done.stderr
    assert "is finished at step 4: nothing to do" in done.stderr
    assert "importing" not in done.stderr


def test_a_launch_that_cannot_start_imports_no_torch(
    start: Callable[..., subprocess.CompletedProcess[str]], small_recipe: Callable[..., Path]
) -> None:
    recipe = small_recipe()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = start("launch", recipe, "--port", str(taken.getsockname()[1]), MINI_R1_ACCELERATOR="cpu")
    assert port.returncode == 150, port.stderr
    assert "is taken" in port.stderr
    key = start("launch", recipe, "--set", "lerning_rate=1")
    assert key.returncode == 78, key.stderr
    assert "did you mean 'learning_rate'" in key.stderr
    dry = start("launch", recipe, "--dry-run", MINI_R1_ACCELERATOR="cpu")
    assert dry.returncode == 0, dry.stderr
    for done in (port, key, dry):
        assert "importing" not in done.stderr


@pytest.mark.parametrize("command", ["train", "demo", "evaluate", "play", "doctor"])
def test_a_command_prints_what_it_loads_before_it_imports_torch(
    start: Callable[..., subprocess.CompletedProcess[str]],
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    command: str,
) -> None:
    recipe = small_recipe()
    run = a_run_with_a_step(tmp_path / "run", recipe)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"nums": [3, 4], "target": 7}')
    given: dict[str, tuple[str | Path, ...]] = {
        "train": (recipe, "--run-dir", tmp_path / "new", "--set", "dataset_id_or_path=nobody/rows"),
        "demo": ("--quick", "--set", "test_fraction=0.999999"),
        "evaluate": (model, "--problems", tmp_path / "rows.jsonl"),
        "play": (run.path, "--numbers", "3,4", "--target", "7"),
        "doctor": (recipe, "--run-dir", tmp_path / "new"),
    }
    done = start(command, *given[command], LAST_IMPORT="torch")
    assert "Traceback" not in done.stderr
    before = done.stderr.partition("importing torch")[0]
    assert re.search(r"^loading torch", before, re.MULTILINE), done.stderr


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ({}, ("train", "--set", "dataset_id_or_path=no.jsonl"), "no.jsonl: no such file"),
        ({"rows.txt": "x"}, ("train", "--set", "dataset_id_or_path=./rows.txt"), "rows.txt: unknown kind of file"),
        ({"set/test.csv": "x"}, ("train", "--set", "dataset_id_or_path=./set"), "set has no split 'train'"),
        (
            {"bad.csv": "nums,target\n1 x,2\n"},
            ("evaluate", "--problems", "bad.csv"),
            "bad.csv:2: 'nums' must hold whole",
        ),
        ({"bad.json": '[{"numbers": [1]}]'}, ("evaluate", "--problems", "bad.json"), "the columns are: numbers"),
        ({}, ("evaluate", "--problems", "no.jsonl"), "no.jsonl: no such file"),
    ],
)
def test_wrong_data_is_refused_without_torch(
    start: Callable[..., subprocess.CompletedProcess[str]],
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    files: dict[str, str],
    given: tuple[str, ...],
    message: str,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    recipe = small_recipe()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    target = tmp_path / "model" if given[0] == "evaluate" else recipe
    done = start(given[0], target, *given[1:])
    assert done.returncode == 78, done.stderr
    assert message in done.stderr
    assert "importing" not in done.stderr


def test_data_generate_prints_its_task_first(
    start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = start("data", "generate", "--rows", "3", "--out", tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "generating 3 problems"
    assert "importing" not in done.stderr


def test_training_without_deepspeed_imports_none_and_prints_no_line_of_df() -> None:
    code = """
import sys
from mini_r1.machine.heavy_imports import needs_extra
with needs_extra("train"):
    import mini_r1.training.train
assert sys.modules["deepspeed"] is None and sys.modules["vllm"] is None
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


@pytest.mark.real
def test_training_with_deepspeed_prints_no_line_of_df_either(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is installed on Linux only")
    code = """
from mini_r1.machine.heavy_imports import needs_extra
with needs_extra("train", deepspeed=True):
    import mini_r1.training.train
import deepspeed
print(deepspeed.__version__)
"""
    home = {**os.environ, "HOME": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    home.pop("TRITON_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, env=home, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "df:" not in done.stdout + done.stderr


@pytest.mark.real
def test_without_nvcc_the_real_deepspeed_fails_on_a_gpu_with_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is installed on Linux only")
    # torch reports an H100; DeepSpeed then looks for the compiler, and never gets to the GPU.
    code = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_properties = lambda device: type("Properties", (), {"major": 9, "minor": 0})()
from mini_r1.errors import KitError
from mini_r1.machine.heavy_imports import needs_extra
try:
    with needs_extra("train", deepspeed=True):
        pass
except KitError as error:
    print(error.exit_code, error.message)
"""
    own = {**os.environ, "CUDA_HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path), "DS_ACCELERATOR": "cuda"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, env=own, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"78 DeepSpeed cannot be imported: .*bin/nvcc.*install cuda-nvcc-12-4 and set CUDA_HOME", done.stdout
    )


def test_cuda_numbers_gpus_as_nvidia_smi_does_in_every_command_that_loads_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with needs_extra("train"):
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_deepspeed_that_cannot_be_imported_is_an_error_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deepspeed.py").write_text("raise AssertionError('CUDA_HOME does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    reason = "DeepSpeed cannot be imported: CUDA_HOME does not exist: .*cuda-nvcc"
    with pytest.raises(KitError, match=reason), needs_extra("train", deepspeed=True):
        pass
