"""`mini-r1 doctor --smoke`: the whole path on this machine's devices with a tiny random model, in two minutes.

`mini-r1 launch` is started twice: the first launch is ended by killing a worker, the second resumes and finishes. The
test checks what a user would: exit codes, the run directory, the metrics. On several nodes it is started on each, like
`mini-r1 launch`, with a shared --run-dir.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mini_r1.errors import ExitCode, KitError
from mini_r1.machine.devices import Devices
from mini_r1.machine.findings import Finding, fail, ok, skip
from mini_r1.machine.heavy_imports import INSTALL, INSTALL_VLLM_CPU
from mini_r1.machine.nodes import Nodes
from mini_r1.machine.provenance import versions
from mini_r1.machine.roles import assign
from mini_r1.plan.device_roles import count_vllm_devices
from mini_r1.plan.planner import AUTO
from mini_r1.recipe.deepspeed_file import find_deepspeed
from mini_r1.run.files import write_json
from mini_r1.run.manifest import verify
from mini_r1.run.reader import read_metrics
from mini_r1.run.run_dir import RunDir

STEPS, SAVE_EVERY, KILL_AFTER = 16, 4, 5
"""Optimizer steps of the run, between two saves, and before the worker is killed, so that one save is complete."""
START_TIMEOUT_S = 420.0
"""Seconds for a launch to make progress: imports, vLLM's start and NCCL's on a slow disk included."""
DOWN_TIMEOUT_S = 60.0
"""Seconds within which the whole job has to end after a worker's death."""
MODEL_TIMEOUT_S = 180.0
SYNC, KILL = "vLLM weight sync", "one worker killed"
"""Names of checks."""
RECIPE: dict[str, Any] = {
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
    # High enough that a step changes the model's text: equal text proves a sync only if it was different before.
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "beta": 0.01,
    # A random model is never right: a random reward makes the answers of a group differ.
    "rewards": {"format": 1.0, "equation": 1.0, "random": 1.0},
    "vllm_gpu_memory_utilization": 0.3,
    "hang_timeout_s": 300,
    "ddp_timeout": 600,
}


class SmokeFailure(Exception):
    """A part of the path that failed, as a finding."""

    def __init__(self, check: str, found: str, fix: str) -> None:
        super().__init__(found)
        self.finding = fail(found, fix, "node").named(check)


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """A smoke test of this node, with as much of the path as node and installation have."""

    folder: Path  # for the model, the recipe, the run and the launchers' output; on several nodes a shared one
    devices: Devices
    nodes: Nodes
    gpus: int | None  # the doctor's --gpus
    vllm_devices: str  # its --vllm-devices
    environment: Mapping[str, str]  # of the launchers
    log: Callable[[str], None]  # takes a line of progress

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "run")

    @property
    def uses_vllm(self) -> bool:
        """Whether node 0 has a device for vLLM, and vLLM is installed.

        A device alone is shared with the worker; on several nodes vLLM needs one that no worker trains on.
        """
        enough = len(self.devices.ids) >= (1 if self.nodes.count == 1 else 2)
        return enough and not (self.devices.on_cpu and versions(["vllm"])["vllm"] is None)

    def refuse_roles(self) -> None:
        """Raise KitError if this is node 0, and it has too few devices for --vllm-devices."""
        if self.nodes.index == 0 and self.vllm_devices not in ("1", AUTO):
            given, number = [self.devices.ids] * self.nodes.count, count_vllm_devices(self.vllm_devices)
            assign(given, use_vllm=True, on_cpu=self.devices.on_cpu, vllm_devices=number)

    @property
    def deepspeed(self) -> str:
        """The DeepSpeed configuration; `none` if DeepSpeed is not installed."""
        return str(self.folder / "zero3.json") if versions(["deepspeed"])["deepspeed"] else "none"

    def findings(self) -> Iterator[Finding]:
        """Run the test and yield a finding for each part as soon as it is known; the first failure is the last one."""
        try:
            yield self._prepare()
            yield from self._interrupted_launch()
            if self.nodes.index == 0:
                yield from self._check_run()
            yield self._resumed_launch()
        except SmokeFailure as failure:
            yield failure.finding

    def _prepare(self) -> Finding:
        """Write model and recipe on node 0, and wait for them on the others."""
        started, recipe, model = time.monotonic(), self.folder / "smoke.yaml", self.folder / "model"
        if self.nodes.index == 0:
            self.log("making a random model")
            self.folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "mini_r1.training.from_scratch", str(model)]
            made = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True)  # noqa: S603
            if made.returncode:
                raise SmokeFailure("model", _last_lines(made.stderr), INSTALL)
            if self.deepspeed != "none":
                values = find_deepspeed("zero3").values
                values["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # shard small weights as well
                write_json(Path(self.deepspeed), values)
            # Last, because the other nodes wait for it. JSON is YAML.
            write_json(recipe, {"model_name_or_path": str(model), **RECIPE, "use_vllm": self.uses_vllm})
        while not recipe.is_file():
            if time.monotonic() > started + MODEL_TIMEOUT_S:
                found = f"{recipe} did not appear: node 0 has not written it, or {self.folder} is not shared"
                fix = "give a --run-dir on a filesystem that all nodes share, and start the test on every node"
                raise SmokeFailure("model", found, fix)
            time.sleep(0.2)
        return ok(f"a random Qwen2 in {time.monotonic() - started:.0f} s").named("model")

    def _interrupted_launch(self) -> Iterator[Finding]:
        started, first = time.monotonic(), self.nodes.index == 0
        self.log(f"first launch: {STEPS} steps, a worker is killed after step {KILL_AFTER}")
        with self._launch() as process:
            while (self.run.read_state().get("step") or 0) < KILL_AFTER:
                if process.poll() is not None:
                    raise self._failure("training", f"launch ended with exit code {process.returncode}")
                if time.monotonic() > started + START_TIMEOUT_S:
                    raise self._failure("training", f"not at step {KILL_AFTER} after {START_TIMEOUT_S:.0f} s")
                time.sleep(0.02)
            yield ok(f"step {KILL_AFTER} after {time.monotonic() - started:.0f} s").named("training")
            if first:
                self.log(f"killed rank {self._kill_last_worker()}")
            killed = time.monotonic()
            code = self._wait(process, DOWN_TIMEOUT_S if first else START_TIMEOUT_S, KILL)
            took = time.monotonic() - killed
        left = [str(process.pid) for process in self._processes()]
        if code != ExitCode.RETRY or left:
            found = f"exit code {code}" + (f", processes left: {', '.join(left)}" if left else "")
            raise SmokeFailure(KILL, f"{found} (150 and none expected)", f"see {self._output}")
        yield ok(f"the job ended after {took:.0f} s with exit code {code}, no process left").named(KILL)

    def _check_run(self) -> Iterator[Finding]:
        """Check what the interrupted launch has left, on node 0."""
        attempt = self.run.read_record()["attempts"][-1]
        workers = attempt["workers"]
        yield ok(f"{workers} on {', '.join(attempt['devices'])}").named("workers")
        if self.uses_vllm:
            yield check_sync(read_metrics(self.run))
        else:
            installed = versions(["vllm"])["vllm"] is not None
            why = "node 0 has no device for it" if installed else f"not installed: {INSTALL_VLLM_CPU}"
            yield skip(why).named(SYNC)
        checkpoints, snapshots = self.run.complete_checkpoints(), self.run.complete_snapshots()
        if not checkpoints or not snapshots:
            found = f"no complete checkpoint after step {KILL_AFTER}"
            raise SmokeFailure("save", found, f"see the logs in {self.run.attempts}")
        problem = verify(checkpoints[0], self.run.run_id) or verify(snapshots[0], self.run.run_id)
        if problem:
            raise SmokeFailure("save", problem, "check the disk: it did not return what was written")
        stage = checkpoints[0].facts.get("zero_stage", 0)
        how = f"ZeRO-{stage}, {workers} shards, weights gathered in 16 bits" if stage else "no DeepSpeed"
        yield ok(f"step {checkpoints[0].step} is whole ({how})").named("save")

    def _resumed_launch(self) -> Finding:
        started = time.monotonic()
        self.log("second launch: resumes and finishes")
        with self._launch() as process:
            code = self._wait(process, START_TIMEOUT_S, "resume")
        steps = [row["step"] for row in read_metrics(self.run)]
        if code != ExitCode.FINISHED or steps != list(range(1, STEPS + 1)):
            raise SmokeFailure("resume", f"exit code {code}, metrics of steps {steps}", f"see {self._output}")
        return ok(f"all steps from 1 to {STEPS}, {time.monotonic() - started:.0f} s").named("resume")

    @contextmanager
    def _launch(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the launcher; kill it, and its workers with it, when the context ends."""
        command = [
            *(sys.executable, "-m", "mini_r1", "launch", str(self.folder / "smoke.yaml")),
            *("--run-dir", str(self.run.path), "--deepspeed", self.deepspeed),
            *(("--vllm-devices", self.vllm_devices) if self.uses_vllm else ()),
            *(() if self.gpus is None else ("--gpus", str(self.gpus))),
            *(("--nodes", "1") if self.nodes.count == 1 else ()),
        ]
        variables = {**self.environment, "MINI_R1_VERIFY_SYNC": "1"}
        with self._output.open("ab") as output, subprocess.Popen(  # noqa: S603
            command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    @property
    def _output(self) -> Path:
        return self.folder / f"launches-node-{self.nodes.index}.txt"

    def _wait(self, process: subprocess.Popen[bytes], timeout_s: float, check: str) -> int:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(check, f"the launcher still runs after {timeout_s:.0f} s") from None

    def _failure(self, check: str, found: str) -> SmokeFailure:
        output = _last_lines(self._output.read_text(errors="replace"))
        return SmokeFailure(check, f"{found}: {output}", f"see {self._output}")

    def _processes(self) -> list[psutil.Process]:
        """Return this node's processes that train in the run directory."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if {"train", str(self.run.path)} <= set(process.info["cmdline"] or ())
        ]

    def _kill_last_worker(self) -> int:
        """Send SIGKILL to this node's worker with the highest rank, and return the rank."""
        ranks: dict[int, psutil.Process] = {}
        for process in self._processes():
            with suppress(psutil.Error, KeyError):
                ranks[int(process.environ()["RANK"])] = process
        if not ranks:
            raise SmokeFailure(KILL, "no worker found in /proc", "the smoke test needs Linux")
        ranks[max(ranks)].kill()
        return max(ranks)


def check_sync(rows: list[dict[str, Any]]) -> Finding:
    """Return the finding about the weights that vLLM got, from rows of metrics; raise SmokeFailure for a bad one."""
    equal = [row["sync/equal"] for row in rows if "sync/equal" in row]
    changed = sum(row.get("sync/changed", 0.0) > 0 for row in rows)
    if not equal or min(equal) < 1:
        different = sum(share < 1 for share in equal)
        found = f"greedy text differs from the trainer's at {different} of {len(equal)} steps"
        fix = "the weights do not arrive unchanged: report it with `mini-r1 bundle`"
        raise SmokeFailure(SYNC, found, fix)
    if not changed:
        found = "the greedy text never changed, so equal text proves nothing"
        raise SmokeFailure(SYNC, found, "run the smoke test again")
    seconds = sum(row.get("time/sync", 0.0) for row in rows) / len(rows)
    gap = max(row.get("logp_gap", 0.0) for row in rows)
    found = f"greedy text equal at all {len(equal)} steps, new at {changed}; {seconds:.2f} s a sync"
    return ok(f"{found}, log-probabilities at most {gap:.2g} nats apart").named(SYNC)


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "no output"


def choose_folder(run_dir: Path | None, nodes: Nodes) -> Path:
    """Return the folder that a smoke test works in: --run-dir, or a new one in the temporary directory.

    Raises:
        KitError: several nodes need a --run-dir, or the one that was named holds something.
    """
    if run_dir is None:
        if nodes.count > 1:
            raise KitError("--smoke on several nodes needs a --run-dir on a filesystem that they share")
        return Path(tempfile.mkdtemp(prefix="mini-r1-smoke-"))
    if nodes.index == 0 and run_dir.exists() and any(run_dir.iterdir()):
        raise KitError(f"{run_dir} is not empty: give --smoke a new --run-dir, it writes a model and a run there")
    return run_dir.absolute()
