"""What many tests share: an untrained model on disk, a small recipe, and the program as a user starts it."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from tests.evidence import EvidenceRecorder
from tests.tiers import TierReport

# A busy machine must not fail a test: no time limit for an example, nor for making one.
settings.register_profile("kit", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kit")

ASSETS = Path(__file__).parent / "assets"
REPO = Path(__file__).parent.parent

TOGETHER = ("tests/slurm/", "tests/containers/", "tests/evaluation/")
"""Folders whose tests share what takes long to make, or what a machine has once: one process runs them all."""

LONGEST_FIRST = (
    "tests/containers/", "tests/slurm/", "tests/cluster/test_real_stack.py", "tests/cluster/test_two_nodes.py",
    "tests/kubernetes/test_docs_kubernetes.py", "tests/cluster/test_launch.py", "tests/cluster/test_smoke.py",
    "tests/test_gpu_bench.py", "tests/cluster/test_rendezvous.py", "tests/training/test_rollout_ahead.py",
    "tests/cluster/test_prefetch.py", "tests/training/test_pushing.py", "tests/publishing/test_publish.py",
    "tests/test_causes.py", "tests/cluster/test_supervise.py", "tests/training/test_run.py",
    "tests/training/test_learning.py", "tests/training/test_kill.py",
)  # fmt: skip
"""What takes minutes begins first, so that no process ends long after the others. pytest-xdist goes by the number of
tests instead."""


@pytest.hookimpl(optionalhook=True)  # the image's tests do without pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule: each process takes a whole file, because its tests share fixtures, or a folder of TOGETHER."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

        def _assign_work_unit(self, node: Any) -> None:
            first = next((scope for scope in LONGEST_FIRST if scope in self.workqueue), None)
            if first is not None:
                self.workqueue.move_to_end(first, last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that `make test-all` passes."""
    parser.addoption("--record-evidence", action="store_true", help="date the lines of docs/verified.md that passed")


def pytest_runtest_setup() -> None:
    """Forget huggingface_hub's HTTP sessions, and the kind that publishing sets: both outlast a test's settings."""
    http = sys.modules.get("huggingface_hub.utils._http")
    if http is not None:
        http.configure_http_backend()


def pytest_configure(config: pytest.Config) -> None:
    """No network, no second thread, no state of the user: before a test's imports, which read these once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    importlib.import_module("huggingface_hub.constants")  # it reads the line above once, before a test changes it
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what it starts inherits that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(TierReport(), "mini-r1-tiers")
    if config.getoption("record_evidence"):
        config.pluginmanager.register(EvidenceRecorder(config), "mini-r1-evidence")


@pytest.fixture(scope="module", autouse=True)
def _accelerates_settings() -> Iterator[None]:
    """Training in this process leaves ACCELERATE_* in the environment, and the next trainer takes bf16 from there.

    They end with the file: several processes take the files in another order than one.
    """

    def settings() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}

    before = settings()
    yield
    for name in settings():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread meanwhile: sums in one order, so that equal means equal to the bit."""
    import torch  # late: the scorer's tests do without it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo tokenizer and random weights."""
    from mini_r1.training.from_scratch import save_untrained

    return save_untrained(tmp_path_factory.mktemp("model") / "untrained")


def write_recipe(path: Path, model: Path, **changes: Any) -> Path:
    """Write a recipe of a few cheap steps on real rows; keyword arguments replace keys."""
    values: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_id_or_path": str(ASSETS / "countdown_rows.jsonl"),
        "test_fraction": 0.25,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_prompt_length": 64,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "beta": 0.01,
        "temperature": 1.0,
        "save_steps": 2,
        "seed": 3,
        # An untrained model is never right: random rewards give the groups something to differ in.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
    }
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


@pytest.fixture
def small_recipe(untrained: Path, tmp_path: Path) -> Callable[..., Path]:
    """`write_recipe` for the untrained model, in the folder of the test."""
    return lambda name="small", **changes: write_recipe(tmp_path / f"{name}.yaml", untrained, **changes)


@pytest.fixture(scope="session")
def mini_r1() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `mini-r1 ARGS` to its end."""

    def run(*args: str | Path, stdin: str | bytes = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run([*command(), *map(str, args)], input=data, capture_output=True, cwd=cwd, timeout=600)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@contextmanager
def disk_full_at(step: int) -> Iterator[None]:
    """The save of this step finds the disk full."""
    from mini_r1.training.trainer import CountdownTrainer

    save = CountdownTrainer._save_checkpoint

    def full(self: CountdownTrainer, model: object, trial: object) -> None:
        if self.state.global_step == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, model, trial)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CountdownTrainer, "_save_checkpoint", full)
        yield


def command() -> list[str]:
    """The console script, through this interpreter."""
    return [sys.executable, "-c", "from mini_r1.cli.app import main; main()"]


def without_times(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what the clock had a part in."""
    clock = ("time", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock and not k.startswith("time/")} for row in metrics]


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
