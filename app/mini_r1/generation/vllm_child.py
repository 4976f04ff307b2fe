"""The process that runs vLLM, vllm_client.py's child, and the only file that imports vllm.

    python -m mini_r1.generation.vllm_child FD BLOCK_FD PARENT_PID

JSON messages come over the socket FD, and each gets one answer: first the configuration, answered when the engine is
ready; then `load` (a group of tensors, whose bytes are in the shared block BLOCK_FD) and `loaded` for new weights, and
`generate`. The answer to a failure has `error` and `exit_code`. The process ends when the socket closes or its parent
dies.

TRL 0.14.0 runs vLLM 0.7.0 in the trainer's process, with patches to torch.distributed and CUDA. Here it is an ordinary
engine (V0) with one device, on a GPU and on a CPU alike.
"""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from mini_r1.errors import ExitCode
from mini_r1.machine.heavy_imports import no_garbage_collection
from mini_r1.machine.lifeline import Lifeline

ADVICE: Final = {
    "Head size": "take a model with one of these, or set use_vllm: false",
    "not supported for now": "set use_vllm: false, and transformers generates",
    "derived max_model_len": "shorten max_prompt_length or max_completion_length",
    "stored in KV cache": "raise vllm_gpu_memory_utilization, or shorten max_prompt_length or max_completion_length",
    "No available memory for the cache blocks": "raise vllm_gpu_memory_utilization, or take a GPU with more memory",
    "Bfloat16 is only supported": "set torch_dtype: float16",
}
"""Fixes of vLLM's errors, by a part of their text."""
UNUSED: Final = ("ray", "torchvision")
"""Packages that vLLM and transformers import if installed, and that generating text does not need."""


def settle(parent: int) -> None:
    """End with the parent, and ignore a scheduler's signals: the trainer handles those, and needs its engine to.

    The parent blocks them while it starts this process, so that none arrives before this.
    """
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # writes its stacks to the log
    if not Lifeline(parent)():
        os._exit(ExitCode.RETRY)


def build(config: dict[str, Any]) -> Any:
    """Return the engine for a configuration (the fields of EngineConfig)."""
    on_cpu = config["device"] == "cpu"
    if on_cpu:
        # vLLM asks the driver, not CUDA_VISIBLE_DEVICES, and accepts a single platform: it must find no GPU.
        sys.modules["pynvml"] = None  # type: ignore[assignment]
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    with no_garbage_collection():
        from vllm import LLM

    _limit_cache_blocks()
    # It would log for every request that there is no tokenizer.
    logging.getLogger("vllm.inputs.preprocess").setLevel(logging.ERROR)
    _import_model_class(config["model"], config["revision"])
    return LLM(
        model=config["model"],
        revision=config["revision"],
        tokenizer=config["tokenizer"],
        skip_tokenizer_init=config["tokenizer"] is None,  # token ids come in and go out
        trust_remote_code=False,
        load_format="safetensors",  # pickled weights could run code (CVE-2025-24357)
        dtype=config["dtype"],
        seed=config["seed"] % (1 << 32),  # NumPy's limit; every request brings its own
        max_model_len=config["max_model_len"],
        gpu_memory_utilization=config["gpu_memory_utilization"],
        swap_space=0,  # GiB; only for requests of several sequences
        num_scheduler_steps=config["num_scheduler_steps"],
        enable_prefix_caching=False,  # it would keep the keys and values of older weights
        device="cpu" if on_cpu else "cuda",
    )


def _limit_cache_blocks() -> None:
    """Limit vLLM's KV cache to twice the blocks that its sequences can fill.

    It fills the memory it may use, and keeps four Python objects for each block: with a small model half a million on a
    CPU (2.5 s and 1 GiB), tens of millions on a GPU. Twice, because it reserves some blocks when it admits sequences.
    """
    from vllm.executor.executor_base import ExecutorBase

    available = ExecutorBase.determine_num_available_blocks

    def enough(self: Any) -> tuple[int, int]:
        on_device, on_host = available(self)
        blocks_of_longest = -(-self.model_config.max_model_len // self.cache_config.block_size)
        return min(on_device, 2 * self.scheduler_config.max_num_seqs * blocks_of_longest), on_host

    ExecutorBase.determine_num_available_blocks = enough


def _import_model_class(model: str, revision: str | None) -> None:
    """Import the model's class in this process.

    By default vLLM inspects it in another process, because it may use CUDA before a fork; that imports all of vLLM
    again, half of its start on a CPU. This process doesn't fork.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    for name in config.architectures or ():
        known = ModelRegistry.models.get(name)
        if known is not None:  # else vLLM reports that it does not know it
            ModelRegistry.register_model(name, known.load_model_cls())


class Weights:
    """Loads new weights, a group of tensors at a time, from a block of memory (a descriptor) that the parent fills."""

    def __init__(self, llm: Any, block: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from mini_r1.generation.shared_block import SharedBlock

        self._torch = torch
        self._block = SharedBlock(block)
        self._model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
        # vLLM's loaders skip names and cut shapes that do not fit; transformers knows the right ones.
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(llm.llm_engine.model_config.hf_config, trust_remote_code=False)
        self._shapes = {name: list(tensor.shape) for name, tensor in twin.state_dict().items()}
        self._needed = {name for name, _ in twin.named_parameters()}  # a tied one counts once

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        """Load `tensors`, each with `name`, `dtype`, `shape` and `offset` in the block, which has `block` bytes."""
        for tensor in message["tensors"]:
            name, shape = tensor["name"], tensor["shape"]
            if name not in self._shapes:
                return _error(f"vLLM was sent a tensor named {name!r}, which its model does not have")
            if shape != self._shapes[name]:
                return _error(f"vLLM was sent {name} with the shape {shape}; in its model it is {self._shapes[name]}")
        self._block.reserve(message["block"])
        with self._torch.no_grad():
            # One call for all: vLLM's loaders list the model's parameters at each.
            self._model.load_weights(map(self._read, message["tensors"]))
        return {}

    def _read(self, tensor: dict[str, Any]) -> tuple[str, Any]:
        dtype = getattr(self._torch, tensor["dtype"])
        return tensor["name"], self._block.tensor(tensor["offset"], dtype, tensor["shape"])

    def loaded(self, message: dict[str, Any]) -> dict[str, Any]:
        """Check that all have come, by `names`."""
        missing = sorted(self._needed.difference(message["names"]))
        if missing:
            return _error(f"vLLM was not sent all weights: {len(missing)} are missing, {missing[0]} among them")
        return {}


def generate(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Complete each of `prompts`; return `ids` and `logps` of each completion, in order, and the `seconds` it took."""
    import torch
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=message["temperature"],
        top_p=message["top_p"],
        top_k=message["top_k"] or -1,  # -1: all
        max_tokens=message["max_new_tokens"],
        stop_token_ids=message["eos_token_ids"],
        ignore_eos=True,  # the generation config's; the request has all end tokens
        logprobs=0,  # of the chosen token only
        stop=message["stop"],
        include_stop_str_in_output=True,
        detokenize=bool(message["stop"]),
    )
    # A prompt comes once for each of its completions: vLLM's n makes as many requests, with bookkeeping to group them.
    prompts = [{"prompt_token_ids": prompt} for prompt in message["prompts"]]
    begun = time.perf_counter()
    # Requests without a seed draw from the device's global generator; with seeds, each row would take a kernel call.
    torch.manual_seed(message["seed"])
    outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
    ids = [list(output.token_ids) for output in outputs]
    logps = [
        [step[token].logprob for token, step in zip(row, output.logprobs, strict=True)]
        for row, output in zip(ids, outputs, strict=True)
    ]
    return {"ids": ids, "logps": logps, "seconds": time.perf_counter() - begun}


def start_error(model: str, error: BaseException) -> dict[str, Any]:
    """Return why there is no engine, and the exit code: the recipe's (78) or the device's (150)."""
    what = f"vLLM cannot run {model}: {_one_line(error)}"
    for part, advice in ADVICE.items():
        if part in str(error):
            return _error(f"{what.rstrip('.')}. To fix it: {advice}")
    return _error(what, ExitCode.CONFIG if isinstance(error, ValueError | ImportError) else ExitCode.RETRY)


def serve(connection: Connection, block: int) -> None:
    """Answer until the socket closes."""
    config: dict[str, Any] = json.loads(connection.recv_bytes())
    try:
        llm = build(config)
        weights = Weights(llm, block)
    except Exception as error:
        traceback.print_exc()
        _send(connection, start_error(config["model"], error))
        return
    answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "load": weights.load,
        "loaded": weights.loaded,
        "generate": lambda message: generate(llm, message),
    }
    _send(connection, {})
    while True:
        message: dict[str, Any] = json.loads(connection.recv_bytes())
        try:
            answer = answers[message["do"]](message)
        except Exception as error:
            traceback.print_exc()
            answer = _error(f"vLLM failed at '{message['do']}': {_one_line(error)}", ExitCode.RETRY)
        _send(connection, answer)


def main() -> None:
    """Serve one parent."""
    descriptor, block, parent = map(int, sys.argv[1:])
    settle(parent)
    for inherited in (descriptor, block):
        os.set_inheritable(inherited, False)
    with contextlib.suppress(EOFError, OSError):  # the parent closed its end, or is gone
        serve(Connection(descriptor), block)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing to save, and vLLM's and CUDA's clean-up may hang


def _send(connection: Connection, answer: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(answer).encode())


def _error(text: str, exit_code: ExitCode = ExitCode.CONFIG) -> dict[str, Any]:
    return {"error": text, "exit_code": int(exit_code)}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
