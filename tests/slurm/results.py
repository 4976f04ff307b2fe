"""How far a run is, and whether two runs came to the same end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import psutil
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from safetensors.torch import load_file

from tests.conftest import without_times


def reached(run: RunDir, step: int) -> Callable[[], bool]:
    """Return a check of whether a run has reached this step and is running."""

    def done() -> bool:
        state = run.read_state()
        return state.get("state") == "running" and state.get("step", -1) >= step

    return done


def freeze(run: RunDir) -> bool:
    """SIGSTOP to the workers of a run: it takes no further step until it is ended or thawed. False: it has none yet."""
    frozen = False
    for process in processes_with("train", str(run.path)):
        with suppress(psutil.Error):
            process.suspend()
            frozen = True
    return frozen


def thaw(run: RunDir) -> None:
    """Continue the workers of a frozen run."""
    for process in processes_with("train", str(run.path)):
        with suppress(psutil.Error):
            process.resume()


def freeze_each_at(step: int, runs: Mapping[str, RunDir], timeout_s: float = 600) -> None:
    """Freeze each run at this step, in any order."""
    waiting = dict(runs)
    deadline = time.monotonic() + timeout_s
    while waiting:
        assert time.monotonic() < deadline, f"not at step {step} after {timeout_s:g} s: {', '.join(waiting)}"
        for name in [name for name, run in waiting.items() if reached(run, step)()]:
            assert freeze(waiting.pop(name))
        time.sleep(0.2)


def processes_with(*words: str) -> Iterator[psutil.Process]:
    """The processes of this machine that have all these words on their command lines."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if {*words} <= {*process.cmdline()}:
                yield process


def same_result(run: RunDir, whole: RunDir) -> None:
    """Assert that both took the same steps and have the same weights, to the bit."""
    assert run.read_state()["state"] == whole.read_state()["state"] == "finished"
    last = whole.read_state()["step"]
    for rows, theirs in zip(*(without_times(read_metrics(one)) for one in (run, whole)), strict=True):
        # What has changed since the last sync is not known at an attempt's first.
        assert {**rows, "sync/changed": 0} == {**theirs, "sync/changed": 0}
    assert list(read_completions(run)) == list(read_completions(whole))
    weights, others = (load_file(one.snapshots / f"step-{last}" / "model.safetensors") for one in (run, whole))
    assert weights.keys() == others.keys()
    assert all(tensor.equal(others[name]) for name, tensor in weights.items())
