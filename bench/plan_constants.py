"""What does the host's work cost that `mini-r1 plan` counts (app/mini_r1/plan/timing.py)?

    .venv/bin/python bench/plan_constants.py

First the operations of a layer in a decoding step of transformers, with a LoRA adapter and without. Then processor
time of one thread, not seconds on a clock: of passing completions from vLLM's process to the workers and, if `make
vllm-cpu` was run, of a decoding step in the real vLLM 0.7.0 without its model's forward pass, by the number of running
sequences. A GPU's host is another processor, starts kernels instead of running them, and prepares vLLM's next step
meanwhile: these figures are no measurement of it. About 1 minute.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"
ROWS = (1, 16, 64, 128)
TOKENS = 24


def fastest(times: list[float]) -> float:
    """Return the second least of some times: other programs on the machine make a call slower, never faster."""
    return sorted(times)[1]


def processor_s(work: Callable[[], object], repeats: int) -> float:
    """Return the processor time of a call, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return fastest(times)


def operations(adapted: bool) -> int:
    """Return the operations that torch dispatches in one layer in a decoding step, with an adapter or without."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class Counter(TorchDispatchMode):  # type: ignore[misc]
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    def of_layers(layers: int) -> int:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
        model: Any = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_hidden_layers=layers, **shape)).bfloat16()
        if adapted:
            lora = LoraConfig(r=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
        ids = torch.zeros((8, 16), dtype=torch.long)
        with torch.no_grad():
            cache = model.eval()(input_ids=ids, use_cache=True).past_key_values
            with Counter() as counter:
                model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        return counter.count

    return of_layers(2) - of_layers(1)


def broadcast_s() -> float:
    """Return the processor time of a token on its way: JSON from vLLM's process, pickle to another rank."""
    rng = random.Random(0)
    completions = {
        "ids": [[rng.randrange(150_000) for _ in range(410)] for _ in range(192)],
        "logps": [[-3 * rng.random() for _ in range(410)] for _ in range(192)],
    }
    return processor_s(lambda: pickle.loads(pickle.dumps(json.loads(json.dumps(completions)))), 5) / (410 * 192)


def configuration(model: str) -> Any:
    """Return the configuration of vLLM."""
    from mini_r1.generation.vllm_process import EngineConfig

    return EngineConfig(model, None, "float32", max_model_len=128, gpu_memory_utilization=0.5, seed=0, device="cpu")


def vllm_steps(model: str) -> None:
    """Print, as JSON, the processor time of a decoding step by running sequences, without the forward pass."""
    from mini_r1.generation.vllm_child import build
    from vllm import SamplingParams

    engine = build(asdict(configuration(model))).llm_engine
    network = engine.model_executor.driver_worker.worker.model_runner.model
    forward, inside = network.forward, [0.0]

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return forward(*args, **kwargs)
        finally:
            inside[0] += time.process_time() - start

    network.forward = timed
    params = SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True, logprobs=0, detokenize=False)
    found = {}
    for rows in ROWS:
        for row in range(rows):
            engine.add_request(str(row), {"prompt_token_ids": [5] * 40}, params)
        times = []
        while engine.has_unfinished_requests():
            inside[0], start = 0.0, time.process_time()
            engine.step()
            times.append(time.process_time() - start - inside[0])
        found[rows] = fastest(times[rows // 32 + 2 : -2])  # the first steps read the prompts
    print(json.dumps(found))


def measure_vllm() -> tuple[dict[int, float], float, float]:
    """Return the seconds of a decoding step by running sequences, and the line through them: at 0, and of one more."""
    from mini_r1.generation.vllm_process import child_environment
    from mini_r1.training.from_scratch import DEMO_FOR_VLLM, save_untrained

    with tempfile.TemporaryDirectory() as folder:
        model = save_untrained(Path(folder) / "model", kind=DEMO_FOR_VLLM)
        config = configuration(str(model))
        command = [str(PYTHON), __file__, str(model)]
        environment = child_environment({**os.environ, "OMP_NUM_THREADS": "1"}, config)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = {int(rows): seconds for rows, seconds in json.loads(done.stdout.splitlines()[-1]).items()}
    slope, start = statistics.linear_regression(list(found), list(found.values()))
    return found, start, slope


def main() -> int:
    adapted, plain = operations(adapted=True), operations(adapted=False)
    print(f"a decoding step, operations a layer: {adapted} with an adapter on all linear layers, {plain} without")
    print(f"completions from vLLM to the workers: {broadcast_s() * 1e6:.2f} us a token")
    if not PYTHON.exists():
        print("vLLM: not measured, no .venv-vllm (`make vllm-cpu`)")
        return 0
    found, start, slope = measure_vllm()
    steps = ", ".join(f"{rows}: {seconds * 1e3:.2f}" for rows, seconds in found.items())
    print(f"vLLM 0.7.0, ms a decoding step by running sequences: {steps}")
    print(f"vLLM 0.7.0: {start * 1e3:.2f} ms a decoding step and {slope * 1e3:.3f} ms a running sequence")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 2:
        vllm_steps(sys.argv[1])
    else:
        sys.exit(main())
