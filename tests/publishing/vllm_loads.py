"""What test_vllm_loads.py runs with .venv-vllm's Python: greedy ids of a published model by the real vLLM, as JSON.

python vllm_loads.py SNAPSHOT NAME REVISION
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import torch
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.generation.vllm_client import VllmEngine
from mini_r1.generation.vllm_process import EngineConfig
from transformers import AutoModelForCausalLM

LENGTH = 24
PROMPTS = [[(7 * i * length + 3 * i + 5) % 150 + 3 for i in range(length)] for length in (3, 17, 30)]


def main() -> None:
    snapshot, name, revision = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(snapshot, torch_dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LENGTH,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        expected.append(output[0, len(prompt) :].tolist())
    config = EngineConfig(
        model=name, revision=revision, dtype="float32", max_model_len=128, gpu_memory_utilization=0.5, seed=1,
        device="cpu",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, closing(VllmEngine(config, Path(folder) / "vllm.log", 600)) as engine:
        done = engine.generate(PROMPTS, SamplingConfig(LENGTH, 0.0), eos_token_ids=(), seed=0)
    answer = {
        "transformers": expected,
        "vllm": [each.ids for each in done],
        "closed": engine._processes[0].popen.returncode,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
