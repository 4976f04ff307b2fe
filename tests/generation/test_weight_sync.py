"""Weights and prompts on their way to one and to several vLLM processes.

Both sides are the kit's own; only vLLM is a stand-in: a child is a thread here, its model keeps what it is given, and
its completions tell what it was asked. The real vLLM: test_vllm.py.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation import vllm_child, vllm_client
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.generation.vllm_client import Generated, VllmEngine, divide
from mini_r1.generation.vllm_process import EngineConfig, VllmProcess
from mini_r1.machine import weight_block
from transformers import AutoModelForCausalLM, Qwen2Config

GROUP = 4096
SHAPE = Qwen2Config(
    vocab_size=997, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, tie_word_embeddings=True,
)  # fmt: skip
EMBEDDING = 997 * 16 * 4
"""Bytes: more than two groups."""
CONFIG = EngineConfig("some/model", None, "float32", 64, 0.5, 0, "0")
SAMPLING = SamplingConfig(8, 1.0, num_generations=3)


class StandInModel:
    """In place of vLLM's model: copies what it is given, slowly."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.calls: list[dict[str, int]] = []
        self.before_reading: Callable[[], object] = lambda: time.sleep(0.003)

    def load_weights(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        group = list(tensors)
        self.before_reading()
        self.calls.append({name: tensor.nbytes for name, tensor in group})
        self.weights |= {name: tensor.clone() for name, tensor in group}


class StandInChild:
    """In place of the child process: `vllm_child.serve` in a thread."""

    def __init__(self, theirs: int, block: int) -> None:
        self._socket = socket.socket(fileno=os.dup(theirs))
        self.returncode: int | None = None
        self._thread = threading.Thread(target=self._serve, args=(block,), daemon=True)
        self._thread.start()

    def _serve(self, block: int) -> None:
        with suppress(EOFError, OSError):
            vllm_child.serve(Connection(os.dup(self._socket.fileno())), block)

    def end(self, status: int) -> None:
        if self.returncode is None:
            self.returncode = status
            self._socket.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)
        self._thread.join(10)
        self._socket.close()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


class Children(list[StandInChild]):
    """The children that were started, and their models."""

    def __init__(self) -> None:
        self.models: list[StandInModel] = []

    def start(self, process: VllmProcess, theirs: int) -> StandInChild:
        process._log.touch()
        self.append(StandInChild(theirs, process._block))
        return self[-1]

    def build(self, config: dict[str, Any]) -> Any:
        self.models.append(StandInModel())
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self.models[-1]))
        executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=worker))
        engine = SimpleNamespace(model_executor=executor, model_config=SimpleNamespace(hf_config=SHAPE))
        return SimpleNamespace(llm_engine=engine, device=config["device"])


def answer(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
    """In place of vLLM's completions: one holds the process's device, its seed and the prompt."""
    prompts = message["prompts"]
    ids = [[int(llm.device), message["seed"], *prompt] for prompt in prompts]
    return {"ids": ids, "logps": [[0.0]] * len(prompts), "seconds": 0.1}


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    found = Children()
    monkeypatch.setattr(vllm_client, "refuse_environment", lambda config: None)
    monkeypatch.setattr(VllmProcess, "_start", lambda process, theirs: found.start(process, theirs))
    monkeypatch.setattr(vllm_child, "build", found.build)
    monkeypatch.setattr(vllm_child, "generate", answer)
    for module in (weight_block, vllm_client):
        monkeypatch.setattr(module, "GROUP_BYTES", GROUP)
    return found


@pytest.fixture
def engine(children: Children, tmp_path: Path) -> Iterator[VllmEngine]:
    with closing(VllmEngine(CONFIG, tmp_path / "vllm.log", 60)) as made:
        yield made


@pytest.fixture
def two(children: Children, tmp_path: Path) -> Iterator[VllmEngine]:
    with closing(VllmEngine(replace(CONFIG, device="6,7"), tmp_path / "vllm.log", 60)) as made:
        yield made


def model_of(seed: int, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(SHAPE).to(dtype)


def assert_arrived(model: Any, copy: StandInModel) -> None:
    expected = dict(model.named_parameters())
    assert copy.weights.keys() == expected.keys()
    assert all(torch.equal(copy.weights[name], tensor) for name, tensor in expected.items())


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_one_message_for_each_group_of_whole_tensors(engine: VllmEngine, children: Children) -> None:
    model = model_of(1)
    sent = engine.load_weights(model.named_parameters())
    (copy,) = children.models
    assert_arrived(model, copy)
    sizes = [sum(call.values()) for call in copy.calls]
    assert sent == sum(sizes) == sum(p.nbytes for p in model.parameters())
    assert all(size <= GROUP or len(call) == 1 for size, call in zip(sizes, copy.calls, strict=True))
    names = len(list(model.parameters()))
    # Two neighbours would have been one group if they fitted; padding of a tensor is less than 64 bytes.
    assert all(a + b > GROUP - 64 * names for a, b in pairwise(sizes[:-1]))
    assert len(copy.calls) < names / 4


def test_the_block_is_kept_between_syncs_and_holds_the_largest_tensor(engine: VllmEngine, children: Children) -> None:
    sizes = []
    for seed, dtype in ((1, torch.float32), (2, torch.bfloat16), (3, torch.float32)):
        model = model_of(seed, dtype)
        engine.load_weights(model.named_parameters())
        assert_arrived(model, children.models[0])
        sizes.append(os.fstat(engine._block.descriptor).st_size)
    assert sizes == [EMBEDDING] * 3


def test_a_group_is_written_while_the_one_before_is_loaded(engine: VllmEngine, children: Children) -> None:
    (copy,) = children.models
    asked, overlapped = threading.Event(), []
    copy.before_reading = lambda: overlapped.append(asked.wait(5))
    small = [(name, tensor) for name, tensor in model_of(1).named_parameters() if tensor.nbytes < GROUP]

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        written = 0
        for name, tensor in small:
            yield name, tensor
            written += tensor.nbytes
            if written > 1.5 * GROUP:  # in the second group, and the first is still being read
                asked.set()

    with pytest.raises(KitError, match=r"1 are missing, model\.embed_tokens\.weight"):
        engine.load_weights(weights())
    assert overlapped[0]


def test_an_error_between_two_tensors_leaves_an_engine_that_loads_the_next_weights(
    engine: VllmEngine, children: Children
) -> None:
    model = model_of(1)

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(model.named_parameters())[:20]
        raise RuntimeError("the collective failed")

    with pytest.raises(RuntimeError, match="the collective failed"):
        engine.load_weights(broken())
    named = dict(model.named_parameters())
    with pytest.raises(KitError, match="'model.wrong.weight', which its model does not have") as refused:
        engine.load_weights({**named, "model.wrong.weight": torch.ones(3), **named}.items())
    assert refused.value.exit_code == ExitCode.CONFIG
    engine.load_weights(model.named_parameters())
    assert_arrived(model, children.models[0])


# ---- page-locked memory ----------------------------------------------------------------------------------------------


class StandInRuntime:
    """In place of the CUDA runtime: records which memory is locked."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.locked: dict[int, int] = {}
        self.calls = 0

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        self.calls += 1
        if not self.error:
            self.locked[pointer] = size
        return self.error

    def cudaHostUnregister(self, pointer: int) -> int:
        del self.locked[pointer]
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> StandInRuntime:
    made = StandInRuntime()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    return made


def test_each_side_locks_the_whole_block_once(runtime: StandInRuntime, engine: VllmEngine, children: Children) -> None:
    for seed in (1, 2):
        model = model_of(seed)
        engine.load_weights(model.named_parameters())
        assert_arrived(model, children.models[0])
    assert runtime.calls == 2  # the trainer's mapping and the child's
    assert list(runtime.locked.values()) == [EMBEDDING] * 2
    assert engine._block.tensor(0, torch.uint8, [1]).data_ptr() in runtime.locked
    engine.close()
    assert len(runtime.locked) == 1  # the child's, which ends with its process


def test_a_block_that_grows_is_unlocked_before_and_locked_again(
    runtime: StandInRuntime, engine: VllmEngine, children: Children
) -> None:
    model = model_of(1)
    engine.load_weights(sorted(model.named_parameters(), key=lambda item: item[1].nbytes))
    assert_arrived(model, children.models[0])
    assert runtime.calls == 4
    assert sorted(runtime.locked.values()) == [EMBEDDING] * 2


def test_memory_that_cannot_be_locked_is_used_all_the_same(
    runtime: StandInRuntime, engine: VllmEngine, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.error = 2
    model = model_of(1)
    engine.load_weights(model.named_parameters())
    assert_arrived(model, children.models[0])
    assert "weights go slower" in caplog.text
    assert not runtime.locked


def test_without_cuda_nothing_is_locked(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: pytest.fail("asked for CUDA"))
    engine.load_weights(model_of(1).named_parameters())


# ---- several processes -----------------------------------------------------------------------------------------------


def test_all_processes_load_the_weights_that_are_written_once(two: VllmEngine, children: Children) -> None:
    slow, fast = children.models
    slow.before_reading = lambda: time.sleep(0.02)
    for seed in (1, 2):
        model = model_of(seed)
        assert two.load_weights(model.named_parameters()) == sum(p.nbytes for p in model.parameters())
        assert_arrived(model, slow)
        assert_arrived(model, fast)
    assert slow.calls == fast.calls


def test_prompts_are_divided_and_completions_come_back_in_their_order(two: VllmEngine) -> None:
    prompts = [[10], [11, 11, 11], [12, 12], [13] * 9, [14]]

    def ask(seed: int) -> list[Generated]:
        return two.generate(prompts, SAMPLING, eos_token_ids=[2], seed=seed)

    done = ask(5)
    assert [each.ids[2:] for each in done] == [prompt for prompt in prompts for _ in range(3)]
    tokens: dict[int, int] = {6: 0, 7: 0}
    for each in done:
        tokens[each.ids[0]] += len(each.ids) - 2 + SAMPLING.max_new_tokens
    assert abs(tokens[6] - tokens[7]) <= 9 + SAMPLING.max_new_tokens
    seeds = {(each.ids[0], each.ids[1]) for each in done}
    assert len({seed for _, seed in seeds}) == len(seeds) == 2  # one for each process
    assert ask(5) == done
    assert {seed for each in ask(6) for seed in each.ids[1:2]}.isdisjoint({seed for _, seed in seeds})


def test_one_process_gets_the_step_s_seed_and_the_prompts_in_order(engine: VllmEngine) -> None:
    done = engine.generate([[10], [11, 11]], SAMPLING, eos_token_ids=[2], seed=5)
    assert [each.ids for each in done] == [[0, 5, 10]] * 3 + [[0, 5, 11, 11]] * 3


def test_fewer_completions_than_processes(two: VllmEngine) -> None:
    assert len(two.generate([[10]], replace(SAMPLING, num_generations=1), eos_token_ids=[], seed=0)) == 1


@pytest.mark.parametrize("work", ["generating", "loading weights"])
def test_one_dead_process_ends_the_other_and_the_job_may_be_tried_again(
    work: str, two: VllmEngine, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
        if llm.device == "7":
            children[1].end(9)
        return answer(llm, message)

    monkeypatch.setattr(vllm_child, "generate", generate)
    children.models[1].before_reading = lambda: children[1].end(9)
    tasks: dict[str, Callable[[], object]] = {
        "generating": lambda: two.generate([[1], [2]], SAMPLING, eos_token_ids=[], seed=0),
        "loading weights": lambda: two.load_weights(model_of(1).named_parameters()),
    }
    with pytest.raises(KitError, match=f"vLLM's process ended while {work} \\(exit status 9\\); .*vllm-2.log") as error:
        tasks[work]()
    assert error.value.exit_code == ExitCode.RETRY
    assert children[0].returncode == -signal.SIGKILL
    with pytest.raises(KitError, match="has been ended already"):
        two.load_weights(model_of(1).named_parameters())


def test_a_stop_ends_all(two: VllmEngine, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(vllm_child, "generate", lambda llm, message: time.sleep(0.3) or answer(llm, message))
    with pytest.raises(Stopped):
        two.generate([[1], [2]], SAMPLING, eos_token_ids=[], seed=0, stop=lambda: True)
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2


def test_what_was_begun_can_be_waited_for_twice(
    two: VllmEngine, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop of the wait leaves the processes at work; what one has answered by then is kept."""
    monkeypatch.setattr(vllm_client, "LOOK_EVERY_S", 0.02)
    rest = threading.Event()

    def generate(llm: Any, message: dict[str, Any]) -> dict[str, Any]:
        if llm.device == "7":
            assert rest.wait(30)
        return {**answer(llm, message), "seconds": float(llm.device)}

    monkeypatch.setattr(vllm_child, "generate", generate)
    two.begin([[1], [2]], SAMPLING, eos_token_ids=[], seed=0)
    with pytest.raises(Stopped):
        two.finish(lambda: len(two._answered) == 1)
    rest.set()
    done = two.finish()
    assert [each.ids[2:] for each in done.completions] == [[1]] * 3 + [[2]] * 3
    assert done.seconds == 7.0
    assert two.generate([[1]], SAMPLING, eos_token_ids=[], seed=0)
    assert [child.returncode for child in children] == [None, None]


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 4))
@settings(max_examples=50)
def test_a_division_is_complete_in_order_and_near_the_best(sizes: list[int], count: int) -> None:
    parts = divide(sizes, count)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(part == sorted(part) for part in parts)
    sums = [sum(sizes[index] for index in part) for part in parts]
    assert max(sums) - min(sums) <= max(sizes, default=0)
    assert divide(sizes, count) == parts
