"""What test_vllm.py runs with .venv-vllm's Python, where the real vLLM is: facts as JSON, which the tests judge.

python vllm_session.py SCRATCH

It makes as few starts of vLLM as it can. After the facts its last engine generates until something kills this process.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mini_r1.errors import KitError
from mini_r1.generation.sampler import SamplingConfig, sample
from mini_r1.generation.stop_strings import saved_tokenizer
from mini_r1.generation.vllm_client import Generated, VllmEngine
from mini_r1.generation.vllm_process import EngineConfig, VllmProcess
from mini_r1.training.from_scratch import DEMO_FOR_VLLM, build_model, build_tokenizer, save_untrained

from tests.generation.sampling_cases import byte_tokenizer, truncated_softmax

LENGTH = 40
TEMPERATURE = 0.7
MINUTES = SamplingConfig(480, 1.0, num_generations=200)
"""Work for minutes."""
NOISE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PROMPTS = [[(7 * i * length + 3 * i + 5) % 150 + 3 for i in range(length)] for length in (1, 3, 17, 30, 9, 9)]


def config(model: Path, max_model_len: int = 512) -> EngineConfig:
    return EngineConfig(
        model=str(model), revision=None, dtype="float32", max_model_len=max_model_len, gpu_memory_utilization=0.5,
        seed=(1 << 40) + 3, device="cpu",
    )  # fmt: skip


def model_of(seed: int) -> Any:
    """The tiny model, with weights large enough that its choices are far from ties."""
    model = build_model(build_tokenizer(), seed, kind=DEMO_FOR_VLLM).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(2.0)
    return model


def greedy_of(model: Any) -> list[list[int]]:
    """transformers' own greedy completions, one prompt at a time."""
    rows = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LENGTH,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        rows.append(output[0, len(prompt) :].tolist())
    return rows


def greedy(engine: VllmEngine, eos: tuple[int, ...] = ()) -> list[list[int]]:
    return [done.ids for done in engine.generate(PROMPTS, SamplingConfig(LENGTH, 0.0), eos_token_ids=eos, seed=0)]


def draw(engine: VllmEngine, seed: int, generations: int = 3) -> list[Generated]:
    sampling = SamplingConfig(LENGTH, TEMPERATURE, num_generations=generations)
    return engine.generate(PROMPTS, sampling, eos_token_ids=[2], seed=seed)


def refusal(work: Callable[[], object]) -> dict[str, Any]:
    """The KitError that comes of it."""
    start = time.monotonic()
    try:
        work()
    except KitError as error:
        return {"words": error.message, "code": int(error.exit_code), "seconds": time.monotonic() - start}
    return {"words": "", "code": 0, "seconds": time.monotonic() - start}


def logp_gap(model: Any, done: list[Generated], temperature: float) -> float:
    """Largest difference to transformers' log-probabilities."""
    worst = 0.0
    prompts = [prompt for prompt in PROMPTS for _ in range(len(done) // len(PROMPTS))]
    for prompt, completion in zip(prompts, done, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
        chosen = (logits / temperature).log_softmax(-1)[range(len(completion.ids)), completion.ids]
        worst = max(worst, (chosen - torch.tensor(completion.logps)).abs().max().item())
    return worst


def first_session(scratch: Path, facts: dict[str, Any]) -> None:
    """Everything that one engine can show, its samples for the second one to repeat, and that it is killed at work."""
    start, changed = model_of(0), model_of(1)
    start.save_pretrained(scratch / "model")
    with closing(VllmEngine(config(scratch / "model"), scratch / "first.log", 600)) as engine:
        child = engine._processes[0].popen
        facts["environment"] = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{child.pid}/environ").read_text().split("\0") if "=" in entry
        )
        facts["greedy"] = {"start": [greedy(engine), greedy_of(start)]}

        sent = engine.load_weights(changed.named_parameters())
        facts["sent"] = [sent, sum(p.numel() * 4 for p in changed.parameters())]
        facts["greedy"]["loaded"] = [greedy(engine), greedy_of(changed)]

        samples = draw(engine, seed=(1 << 62) + 5)
        facts["samples"] = {
            "first": [done.ids for done in samples],
            "again": [done.ids for done in draw(engine, seed=(1 << 62) + 5)],
            "other": [done.ids for done in draw(engine, seed=(1 << 62) + 6)],
        }
        facts["gap"] = {
            "sampled": logp_gap(changed, samples, TEMPERATURE),
            "greedy": logp_gap(
                changed, engine.generate(PROMPTS, SamplingConfig(LENGTH, 0.0), eos_token_ids=[], seed=0), 1.0
            ),
        }
        facts["drawn"] = frequencies(engine, changed)
        free = greedy(engine)
        eos = tuple(sorted({row[place] for row, place in zip(free, (0, 5, 12, 25, 33, 39), strict=True)}))
        facts["ends"] = {"eos": eos, "free": free, "cut": greedy(engine, eos)}

        for each in NOISE:
            child.send_signal(each)
        facts["after signals"] = greedy(engine) == free

        weights = dict(changed.named_parameters())
        name, tensor = next(iter(weights.items()))
        wrong = {
            "unknown name": [("model.layers.0.self_attn.q_proj.lora", tensor)],
            "base_model": [(f"base_model.model.{name}", tensor)],
            "too large": [("model.layers.0.self_attn.q_proj.weight", torch.zeros(128, 64))],
            "not gathered": [(name, torch.empty(0))],
            "one missing": [(n, p) for n, p in weights.items() if n != name],
        }
        facts["refused"] = {
            case: refusal(lambda given=given: engine.load_weights(given)) for case, given in wrong.items()
        }
        facts["refused"]["too long"] = refusal(
            lambda: engine.generate([[5] * 500], SamplingConfig(13, 1.0), eos_token_ids=[], seed=0)
        )
        short = {name: tensor.bfloat16() for name, tensor in start.state_dict().items()}
        engine.load_weights(short.items())  # the tied head comes twice
        start.load_state_dict({name: tensor.float() for name, tensor in short.items()})
        facts["greedy"]["bfloat16"] = [greedy(engine), greedy_of(start)]
        engine.load_weights(changed.named_parameters())  # for the second session
        facts["nothing"] = engine.generate([], SamplingConfig(4, 1.0), eos_token_ids=[], seed=0)
        changed.save_pretrained(scratch / "changed")

        timer = threading.Timer(0.5, child.kill)
        timer.start()
        facts["killed"] = refusal(lambda: engine.generate(PROMPTS, MINUTES, eos_token_ids=[], seed=0))
        facts["after it died"] = refusal(lambda: draw(engine, 0))
    facts["killed"]["returncode"] = child.returncode
    facts["log"] = (scratch / "first.log").read_text()


def frequencies(engine: VllmEngine, model: Any, count: int = 4000, **keys: Any) -> dict[str, list[float]]:
    """How often each token came first among many draws, and its probability."""
    prompt = PROMPTS[2]
    done = engine.generate([prompt], SamplingConfig(1, TEMPERATURE, count, **keys), eos_token_ids=[2], seed=11)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1] / TEMPERATURE
    expected = torch.tensor(truncated_softmax(logits.tolist(), **keys))
    counts = torch.bincount(torch.tensor([each.ids[0] for each in done]), minlength=len(expected))
    gap = max(abs(math.log(expected[each.ids[0]]) - (each.logps or [])[0]) for each in done)
    return {"seen": (counts / count).tolist(), "expected": expected.tolist(), "count": [float(count)], "gap": [gap]}


def stopped(engine: VllmEngine, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Completions that stop strings end: greedy ones of both samplers, and drawn ones of vLLM."""
    free = greedy(engine)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in free]
    strings = tuple({text[at : at + 2] for text, at in zip(texts, (0, 5, 12, 20, 27, 34), strict=True)})
    sampling = SamplingConfig(LENGTH, 0.0, stop=strings)
    drawn = SamplingConfig(LENGTH, TEMPERATURE, num_generations=8, top_k=40, top_p=0.95, stop=strings)
    return {
        "free": free,
        "strings": strings,
        "vllm": [done.ids for done in engine.generate(PROMPTS, sampling, eos_token_ids=[], seed=0)],
        "kit": sample(model, PROMPTS, sampling, eos_token_ids=[], pad_token_id=0, seed=0, tokenizer=tokenizer),
        "drawn": [done.ids for done in engine.generate(PROMPTS, drawn, eos_token_ids=[2], seed=5)],
    }


def second_session(scratch: Path, facts: dict[str, Any]) -> VllmEngine:
    """A fresh child, with a tokenizer, that is signalled from its birth and draws the same; then the sampling keys."""
    begin = VllmProcess._start

    def noisy(child: VllmProcess, descriptor: int) -> Any:
        process = begin(child, descriptor)
        for each in NOISE:
            process.send_signal(each)
        return process

    VllmProcess._start = noisy  # type: ignore[method-assign]
    tokenizer = byte_tokenizer()  # not the model's own; only stop strings use it
    with saved_tokenizer(tokenizer, ["x"]) as directory:
        given = replace(config(scratch / "changed"), tokenizer=directory)
        engine = VllmEngine(given, scratch / "second.log", 600)
    VllmProcess._start = begin  # type: ignore[method-assign]
    facts["samples"]["fresh"] = [done.ids for done in draw(engine, seed=(1 << 62) + 5)]
    changed = model_of(1)
    facts["truncated"] = {
        "top_k": frequencies(engine, changed, 1500, top_k=7),
        "top_p": frequencies(engine, changed, 1500, top_p=0.6),
        "both": frequencies(engine, changed, 1500, top_k=20, top_p=0.8),
    }
    facts["stopped"] = stopped(engine, changed, tokenizer)
    return engine


def failed_starts(scratch: Path, facts: dict[str, Any]) -> None:
    """What cannot start, and is to say why."""

    def start(given: EngineConfig, timeout_s: float = 600) -> dict[str, Any]:
        return refusal(lambda: VllmEngine(given, scratch / "failed.log", timeout_s))

    facts["head size"] = start(config(save_untrained(scratch / "four heads")))
    facts["too long a model"] = start(config(scratch / "model", max_model_len=513))

    begin, started = VllmProcess._start, []

    def kept(child: VllmProcess, descriptor: int) -> Any:
        started.append(begin(child, descriptor))
        return started[-1]

    VllmProcess._start = kept  # type: ignore[method-assign]
    facts["not in time"] = start(config(scratch / "model"), timeout_s=0.5)
    VllmProcess._start = begin  # type: ignore[method-assign]
    facts["closed"] = started[0].returncode  # close() has ended it: it was still importing


def main() -> None:
    scratch = Path(sys.argv[1])
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    first_session(scratch, facts)
    failed_starts(scratch, facts)
    engine = second_session(scratch, facts)
    facts["busy"] = engine._processes[0].popen.pid
    print(json.dumps(facts), flush=True)
    while True:
        engine.generate(PROMPTS, MINUTES, eos_token_ids=[], seed=0)


if __name__ == "__main__":
    main()
