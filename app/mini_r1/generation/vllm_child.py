"""The process that runs vLLM: the far side of vllm_client.py, and the only file that imports vllm.

    python -m mini_r1.generation.vllm_child FD BLOCK_FD PARENT_PID

Over the socket FD come JSON messages, each answered by one: first the configuration, answered when the engine is ready;
then `begin`, `tensor` (its bytes lie in the shared block BLOCK_FD) and `loaded` for new weights, and `generate`. What
fails is answered with `error` and `exit_code`. The process ends when the socket closes or its parent dies.

vLLM 0.7.0 as TRL 0.14.0 uses it lives in the trainer's process, with torch.distributed and CUDA patched around it. Here
it is alone with one device: an ordinary engine (V0), on a GPU and on a CPU alike.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import mmap
import os
import signal
import sys
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
"""What to do about vLLM's own words, by a part of them."""
UNUSED: Final = ("ray", "torchvision")
"""Packages that vLLM and transformers import if they are installed; generating text does not need them."""


def settle(parent: int) -> None:
    """Belong to the parent alone: its death ends this process, a scheduler's signals do not.

    The trainer answers those, and needs its engine until it has. The parent blocks them while it starts this process,
    so that none arrives before this.
    """
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # where it hangs, into its log
    if not Lifeline(parent)():
        os._exit(ExitCode.RETRY)


def build(config: dict[str, Any]) -> Any:
    """The engine that a configuration asks for (the fields of EngineConfig)."""
    on_cpu = config["device"] == "cpu"
    if on_cpu:
        # vLLM asks the driver, not CUDA_VISIBLE_DEVICES, and wants a single platform: no GPU may be found here.
        sys.modules["pynvml"] = None  # type: ignore[assignment]
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    with no_garbage_collection():
        from vllm import LLM

    _limit_cache_blocks()
    # For every request it would log that there is no tokenizer to take an end token from.
    logging.getLogger("vllm.inputs.preprocess").setLevel(logging.ERROR)
    _import_model_class(config["model"], config["revision"])
    return LLM(
        model=config["model"],
        revision=config["revision"],
        skip_tokenizer_init=True,  # token ids come in and go out
        trust_remote_code=False,
        load_format="safetensors",  # pickled weights could run code (CVE-2025-24357)
        dtype=config["dtype"],
        seed=config["seed"] % (1 << 32),  # NumPy's limit; every request brings its own
        max_model_len=config["max_model_len"],
        gpu_memory_utilization=config["gpu_memory_utilization"],
        swap_space=0,  # GiB; used only by requests of several sequences, and there are none
        enable_prefix_caching=False,  # it would keep the keys and values of older weights
        device="cpu" if on_cpu else "cuda",
    )


def _limit_cache_blocks() -> None:
    """Let vLLM make no more KV cache blocks than its sequences can ever fill, twice over.

    It fills the memory it may use, and keeps four Python objects for each block: with a small model half a million on a
    CPU (2.5 s and 1 GiB), tens of millions on a GPU. Twice, because it holds some blocks back when it admits sequences.
    """
    from vllm.executor.executor_base import ExecutorBase

    available = ExecutorBase.determine_num_available_blocks

    def enough(self: Any) -> tuple[int, int]:
        on_device, on_host = available(self)
        blocks_of_longest = -(-self.model_config.max_model_len // self.cache_config.block_size)
        return min(on_device, 2 * self.scheduler_config.max_num_seqs * blocks_of_longest), on_host

    ExecutorBase.determine_num_available_blocks = enough


def _import_model_class(model: str, revision: str | None) -> None:
    """Import the model's class here, where it is needed anyway.

    Else vLLM has another process say what the class can do, which imports all of vLLM again: half of its start on a
    CPU. It does so because the class may touch CUDA before a fork; this process forks none.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    for name in config.architectures or ():
        known = ModelRegistry.models.get(name)
        if known is not None:  # else vLLM's own words say that it does not know it
            ModelRegistry.register_model(name, known.load_model_cls())


class Weights:
    """New weights, one tensor at a time out of a block of memory that the parent fills.

    Args:
        llm: the engine.
        block: descriptor of the memory.
    """

    def __init__(self, llm: Any, block: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._block = block
        self._mapped: mmap.mmap | None = None
        self._model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
        # vLLM's loaders skip names and cut shapes that do not fit; transformers knows what there must be.
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(llm.llm_engine.model_config.hf_config, trust_remote_code=False)
        self._shapes = {name: list(tensor.shape) for name, tensor in twin.state_dict().items()}
        self._needed = {name for name, _ in twin.named_parameters()}  # a tied one counts once
        self._arrived: set[str] = set()

    def begin(self, message: dict[str, Any]) -> dict[str, Any]:
        """A new set of weights comes."""
        self._arrived.clear()
        self._mapped = None
        return {}

    def tensor(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take one: `name`, `dtype`, `shape`; its bytes are at the start of the block, `bytes` long."""
        name, shape = message["name"], message["shape"]
        if name not in self._shapes:
            return _fault(f"vLLM was sent a tensor named {name!r}, which its model does not have")
        if shape != self._shapes[name]:
            return _fault(f"vLLM was sent {name} with the shape {shape}; in its model it is {self._shapes[name]}")
        if self._mapped is None or len(self._mapped) < message["bytes"]:
            self._mapped = mmap.mmap(self._block, message["bytes"])
        torch = self._torch
        flat = torch.frombuffer(self._mapped, dtype=getattr(torch, message["dtype"]), count=message["count"])
        with torch.no_grad():
            self._model.load_weights([(name, flat.view(shape))])
        self._arrived.add(name)
        return {}

    def loaded(self, message: dict[str, Any]) -> dict[str, Any]:
        """That was the last one: let go of the block."""
        self._mapped = None
        missing = sorted(self._needed - self._arrived)
        if missing:
            return _fault(f"vLLM was not sent all weights: {len(missing)} are missing, {missing[0]} among them")
        return {}


def generate(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Complete `prompts`, each `n` times: `ids` and `logps` of each completion, in order."""
    import torch
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=message["temperature"],
        top_p=1.0,
        top_k=-1,
        max_tokens=message["max_new_tokens"],
        stop_token_ids=message["eos_token_ids"],
        ignore_eos=True,  # the generation config's; the request names all that count
        logprobs=0,  # of the chosen token alone
        detokenize=False,
    )
    # One request for each completion is what vLLM's n makes too, less its bookkeeping to put them together again.
    prompts = [{"prompt_token_ids": prompt} for prompt in message["prompts"] for _ in range(message["n"])]
    # Unseeded requests draw from torch's global generator of the device; with seeds of their own each row would be
    # drawn in a kernel call of its own.
    torch.manual_seed(message["seed"])
    outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
    ids = [list(output.token_ids) for output in outputs]
    logps = [
        [step[token].logprob for token, step in zip(row, output.logprobs, strict=True)]
        for row, output in zip(ids, outputs, strict=True)
    ]
    return {"ids": ids, "logps": logps}


def start_fault(model: str, error: BaseException) -> dict[str, Any]:
    """Why there is no engine, in words, and whose fault that is: the recipe's (78) or the device's (150)."""
    what = f"vLLM cannot run {model}: {_words(error)}"
    for part, advice in ADVICE.items():
        if part in str(error):
            return _fault(f"{what.rstrip('.')}. What helps: {advice}")
    return _fault(what, ExitCode.CONFIG if isinstance(error, ValueError | ImportError) else ExitCode.RETRY)


def serve(connection: Connection, block: int) -> None:
    """Answer until the socket closes."""
    config = _receive(connection)
    try:
        llm = build(config)
        weights = Weights(llm, block)
    except Exception as error:
        traceback.print_exc()
        _send(connection, start_fault(config["model"], error))
        return
    answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "begin": weights.begin,
        "tensor": weights.tensor,
        "loaded": weights.loaded,
        "generate": lambda message: generate(llm, message),
    }
    _send(connection, {})
    while True:
        message = _receive(connection)
        try:
            answer = answers[message["do"]](message)
        except Exception as error:
            traceback.print_exc()
            answer = _fault(f"vLLM failed at '{message['do']}': {_words(error)}", ExitCode.RETRY)
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
    os._exit(0)  # nothing to save, and vLLM's and CUDA's own clean-up may hang


def _send(connection: Connection, answer: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(answer).encode())


def _receive(connection: Connection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(connection.recv_bytes())
    return message


def _fault(words: str, exit_code: ExitCode = ExitCode.CONFIG) -> dict[str, Any]:
    return {"error": words, "exit_code": int(exit_code)}


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
