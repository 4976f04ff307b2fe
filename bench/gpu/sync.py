"""Seconds of a weight sync: the trainer's weights to the real vLLM, by the kit's own client.

    .venv/bin/python bench/gpu/run.py --out FOLDER --only sync

vLLM starts in its child process with a random bfloat16 model, on this GPU; the trainer's copy is on the same one. All
weights are sent SENDS times. The first call pays for new memory and is printed apart. In the same run: as
many bytes copied twice from host memory to host memory, which is the least that a path through shared memory does.
Two GPUs are not compared here: the bytes take the same way, through the host.

On a CPU (`--scale tiny`) it is the real vLLM on the CPU, of `make vllm-cpu`: a smoke run of the bench. Without vLLM
nothing is measured, and the result says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as common
from mini_r1.machine.heavy_imports import find_vllm_problem
from mini_r1.run.files import write_json

SENDS = 6
UTILIZATION = 0.3
"""Share of the GPU for vLLM: its weights and a small cache."""
START_S = 300
PIECE = 64 * 2**20
"""Bytes of one plain copy."""


def measure(out: Path, scratch: Path, shape: str) -> None:
    """Write the seconds of each sync and of the plain copies."""
    cuda = bool(common.gpu())
    problem = find_vllm_problem(on_cpu=not cuda)
    if problem is not None:
        write_json(out, {"not_run": ": ".join(problem)})
        return
    folder = common.made_model(shape, scratch)

    from mini_r1.generation.model import load_model
    from mini_r1.generation.vllm_client import EngineConfig, VllmEngine

    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if cuda else "cpu"
    config = EngineConfig(
        model=str(folder), revision=None, dtype="bfloat16", max_model_len=1024, gpu_memory_utilization=UTILIZATION,
        seed=common.SEED, device=device,
    )  # fmt: skip
    started = time.perf_counter()
    engine = VllmEngine(config, out.with_suffix(".vllm.log"), start_timeout_s=START_S)
    try:
        start_s = time.perf_counter() - started
        # After vLLM has measured the free memory.
        model = load_model(str(folder), None, "bfloat16", None).to("cuda" if cuda else "cpu")
        sent, seconds = 0, []
        for number in range(SENDS):
            taken, sent = timed(lambda: engine.load_weights(model.named_parameters()), common.wait_for_gpu)
            seconds.append(taken)
            print(f"sync {number + 1} of {SENDS}: {taken:.2f} s", flush=True)
    finally:
        engine.close()
    copies = [timed(lambda: copy_twice(sent), lambda: None)[0] for _ in range(SENDS)]
    write_json(out, {
        "shape": shape, "device": "cuda" if cuda else "cpu", "bytes": sent, "tensors": len(list(model.parameters())),
        "start": start_s, "syncs": seconds, "copies": copies, "complete": True,
    })  # fmt: skip


def timed(function: Callable[[], Any], wait: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, the GPU's work before and after it included, and its result."""
    wait()
    started = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - started, result


def copy_twice(size: int) -> None:
    """Copy `size` bytes of host memory, in pieces, to another place and from there to a third."""
    import torch

    places = [torch.ones(PIECE, dtype=torch.uint8) for _ in range(3)]
    for start in range(0, size, PIECE):
        part = min(PIECE, size - start)
        places[1][:part].copy_(places[0][:part])
        places[2][:part].copy_(places[1][:part])


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Seconds of the first sync and of the later ones (median), bytes a second, and the share of the plain copies'."""
    later, copies = statistics.median(result["syncs"][1:]), statistics.median(result["copies"][1:])
    return {
        "first": result["syncs"][0], "later": later, "copies": copies, "bytes_s": result["bytes"] / later,
        "share": copies / later,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=common.SHAPES, required=True)
    given = parser.parse_args()
    measure(given.out, given.scratch, given.shape)


if __name__ == "__main__":
    main()
