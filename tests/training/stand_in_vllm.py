"""vLLM's process as a thread of the trainer's: the kit's own protocol and sampler, transformers in place of vLLM.

For workers that train (tests/training/workers.py): `with_stand_in` replaces the process and calls `mini-r1 train`. The
thread has its own model, which gets the weights that are sent, so that a completion shows which weights sampled it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WAIT_S = 60.0


class StandInWeights:
    """In place of vLLM's model: a transformers model that copies what it is given."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._targets = dict(self.network.named_parameters())

    def load_weights(self, tensors: Any) -> None:
        for name, tensor in tensors:
            if name in self._targets:
                self._targets[name].data.copy_(tensor)


def build(config: dict[str, Any]) -> Any:
    """In place of vLLM's engine."""
    model = StandInWeights(config["model"])
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=worker))
    engine = SimpleNamespace(model_executor=executor, model_config=SimpleNamespace(hf_config=model.network.config))
    return SimpleNamespace(llm_engine=engine, network=model.network)


def generate(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
    """In place of vLLM's completions: the kit's sampler, and the log-probabilities of a forward pass."""
    import torch
    from mini_r1.generation.sampler import SamplingConfig, sample

    begun = time.perf_counter()
    config = SamplingConfig(message["max_new_tokens"], message["temperature"])
    end, prompts = message["eos_token_ids"], message["prompts"]
    rows = sample(llm.network, prompts, config, eos_token_ids=end, pad_token_id=0, seed=message["seed"])
    logps = []
    with torch.no_grad():
        for prompt, row in zip(prompts, rows, strict=True):
            logits = llm.network(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
            chosen = (logits / (message["temperature"] or 1.0)).log_softmax(-1).gather(1, torch.tensor([row]).T)
            logps.append(chosen.flatten().tolist())
    return {"ids": rows, "logps": logps, "seconds": time.perf_counter() - begun}


class Moments:
    """What happens when in a run, and what a test does at one of them.

    Moments are named "update 3", "rollout 4" (vLLM begins to sample for step 4), "wait 4" (the trainer begins to wait
    for that), "score 3", "evaluate 4".
    """

    def __init__(self, log: Path, when: str, what: str) -> None:
        self._log = log
        self._when, self._what = when, what
        self.children: list[Any] = []
        self.reached: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def event(self, name: str) -> threading.Event:
        with self._lock:
            return self.reached.setdefault(name, threading.Event())

    def reach(self, name: str) -> None:
        """Note a moment; if it is the test's, send this process a signal, or end vLLM's."""
        first = not self.event(name).is_set()
        self.event(name).set()
        with self._lock, self._log.open("a") as file:
            file.write(json.dumps(name) + "\n")
        if name != self._when or not first:
            return
        if self._what == "kill vllm":
            self.children[-1].end(9)
        else:
            os.kill(os.getpid(), getattr(signal, self._what))


def with_stand_in(log: Path, when: str, what: str, endless: str, *args: str | Path) -> None:
    """`mini-r1 train ARGS` with the stand-in.

    A rollout that was begun ahead ends only when the update of the step before has begun: a trainer that waits for it
    first never ends.

    Args:
        log: gets the moments, a JSON string a line.
        when, what: at this moment the process gets this signal, or `kill vllm`.
        endless: the moment of a rollout that never ends.
        args: of the command.
    """
    import torch
    from mini_r1.generation import vllm_child, vllm_client
    from mini_r1.generation.vllm_process import VllmProcess
    from mini_r1.training import rollout_ahead, trainer

    from tests.generation.test_weight_sync import StandInChild
    from tests.training.workers import train

    torch.set_num_threads(1)
    making = (
        threading.Lock()
    )  # transformers has a global switch while it loads a model, and two threads may be children

    class LockedWeights(vllm_child.Weights):
        def __init__(self, llm: Any, block: int) -> None:
            with making:
                super().__init__(llm, block)

    def built(config: dict[str, Any]) -> Any:
        with making:
            return build(config)

    moments = Moments(log, when, what)
    held: list[str] = []

    def start(process: Any, theirs: int) -> Any:
        process._log.touch()
        moments.children.append(StandInChild(theirs, process._block))
        return moments.children[-1]

    def generated(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
        for name in held:
            assert moments.event(name).wait(WAIT_S), f"{name} did not begin while vLLM sampled"
        while endless in moments.reached:
            time.sleep(0.01)
        return generate(llm, message)

    begin = rollout_ahead.RolloutAhead.begin

    def begun(self: Any, step: int, policy_step: int, prompts: Any) -> None:
        held[:] = [f"update {step - 1}"] if step - policy_step == 2 else []
        moments.reach(f"rollout {step}")
        begin(self, step, policy_step, prompts)

    def noted(name: str, before: Callable[[Any], str]) -> None:
        method = getattr(trainer.CountdownTrainer, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            moments.reach(before(self))
            return method(self, *args, **kwargs)

        setattr(trainer.CountdownTrainer, name, call)

    noted("training_step", lambda self: f"update {self.state.global_step + 1}")
    noted("evaluate", lambda self: f"evaluate {self.state.global_step}")
    phase = trainer.CountdownTrainer._begin_phase

    def begun_phase(self: Any, name: str) -> None:
        done = self.state.global_step
        awaited = self._ahead.in_flight if self._ahead is not None and name == "rollout" else None
        moments.reach(f"{name} {done + (name == 'score')}" if awaited is None else f"wait {awaited}")
        phase(self, name)

    trainer.CountdownTrainer._begin_phase = begun_phase
    rollout_ahead.RolloutAhead.begin = begun
    vllm_client.refuse_environment = lambda config: None
    vllm_client.LOOK_EVERY_S = 0.05
    VllmProcess._start = start
    vllm_child.build, vllm_child.generate, vllm_child.Weights = built, generated, LockedWeights
    train(*args)
