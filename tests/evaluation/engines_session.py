"""What test_engines.py runs with .venv-vllm's Python: greedy text of models and an adapter by both engines, as JSON.

python engines_session.py SCRATCH
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mini_r1.generation.completers import Completer, TransformersCompleter, VllmCompleter
from mini_r1.generation.model import load_model, load_tokenizer
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.training.from_scratch import DEMO_FOR_VLLM, build_model, build_tokenizer
from peft import LoraConfig, TaskType, get_peft_model

PROMPTS = [[(7 * i * length + 3 * i + 5) % 150 + 3 for i in range(length)] for length in (3, 17, 9)]


def save(directory: Path, seed: int) -> Path:
    """A model with two heads, as vLLM wants them, and weights so large that its choices are far from ties."""
    tokenizer = build_tokenizer()
    model: Any = build_model(tokenizer, seed, kind=DEMO_FOR_VLLM)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(2.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_adapter(directory: Path, base: Path) -> Path:
    """A random adapter of the model."""
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=16, target_modules="all-linear", use_rslora=True)
    model = get_peft_model(load_model(str(base), None, None, None), config)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(directory)
    load_tokenizer(str(base), None).save_pretrained(directory)
    return directory


def greedy(completer: Completer, stop: tuple[str, ...] = ()) -> list[list[int]]:
    return completer.complete(PROMPTS, SamplingConfig(40, 0.0, stop=stop), 0, lambda count: None)


def main() -> None:
    scratch = Path(sys.argv[1])
    models = [save(scratch / str(seed), seed) for seed in (1, 2, 3)]
    models.append(save_adapter(scratch / "adapter", models[0]))
    tokenizer = load_tokenizer(str(models[0]), None)
    vllm = VllmCompleter(str(models[0]), None, tokenizer, 64, "cpu", scratch / "vllm.log", stop=("x",))
    found = []
    for number, model in enumerate(models):
        if number:
            vllm.take(model)
        other = TransformersCompleter.load(str(model), None, str(model))
        found.append([greedy(vllm), greedy(other)])
    stop = (tokenizer.decode(found[-1][0][0][10:12]),)
    stopped = [greedy(vllm, stop), greedy(other, stop)]
    vllm.close()
    print(json.dumps({"greedy": found, "stopped": stopped}))


if __name__ == "__main__":
    main()
