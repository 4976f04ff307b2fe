"""vLLM in its child process: the real vLLM 0.7.0 against transformers, and how either side's end is noticed.

The environment of the tests has no vLLM: `make vllm-cpu` makes one that has, and vllm_session.py runs there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mini_r1.errors import ExitCode, KitError, Stopped
from mini_r1.generation import vllm_client
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.generation.vllm_child import start_error
from mini_r1.generation.vllm_client import VllmEngine
from mini_r1.generation.vllm_process import EngineConfig, VllmProcess, child_environment

from tests.generation.sampling_cases import byte_tokenizer, first_stop

REPO = Path(__file__).parent.parent.parent
PYTHON = REPO / ".venv-vllm" / "bin" / "python"
SESSION = Path(__file__).parent / "vllm_session.py"

with_vllm = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: `make vllm-cpu`")

CONFIG = EngineConfig(
    model="some/model",
    revision=None,
    dtype="bfloat16",
    max_model_len=64,
    gpu_memory_utilization=0.9,
    seed=0,
    device="3",
)
WORKER = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "GROUP_RANK": "0",
    "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "MINI_R1_SUPERVISOR": "/nowhere",
    "CUDA_VISIBLE_DEVICES": "0,1,2", "HF_TOKEN": "hf_secret", "WANDB_API_KEY": "secret", "VLLM_USE_V1": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """vllm_session.py, as a worker of three would run it, and its facts; then its last engine generates for minutes."""
    scratch = tmp_path_factory.mktemp("vllm")
    with (
        (scratch / "errors").open("wb") as errors,
        subprocess.Popen(
            [PYTHON, SESSION, scratch],
            env={**os.environ, **WORKER, "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,  # fmt: skip
    ):
        try:
            assert process.stdout is not None
            answer = next((line for line in process.stdout if line.startswith("{")), None)  # others write there too
            assert answer is not None, (scratch / "errors").read_text()[-4000:]
            yield process, json.loads(answer)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def facts(session: tuple[subprocess.Popen[str], dict[str, Any]]) -> dict[str, Any]:
    """What vllm_session.py found."""
    return session[1]


# ---- what it generates -----------------------------------------------------------------------------------------------


@with_vllm
@pytest.mark.real
@pytest.mark.parametrize("weights", ["start", "loaded", "bfloat16"])
def test_greedy_is_transformers_greedy_with_the_weights_of_the_moment(facts: dict[str, Any], weights: str) -> None:
    ours, theirs = facts["greedy"][weights]
    assert ours == theirs
    assert all(len(row) == 40 for row in ours)


@with_vllm
@pytest.mark.real
def test_other_weights_give_other_text(facts: dict[str, Any]) -> None:
    texts = [facts["greedy"][weights][0] for weights in ("start", "loaded")]
    assert all(before != after for before, after in zip(*texts, strict=True))


@with_vllm
@pytest.mark.real
def test_the_same_seed_gives_the_same_completions_in_a_fresh_process_too(facts: dict[str, Any]) -> None:
    samples = facts["samples"]
    assert samples["first"] == samples["again"] == samples["fresh"]
    assert samples["first"] != samples["other"]


@with_vllm
@pytest.mark.real
def test_log_probabilities_are_those_of_the_distribution_that_was_drawn_from(facts: dict[str, Any]) -> None:
    """And belong to their prompts: the session asks transformers with the prompt of each group."""
    assert facts["gap"]["sampled"] < 1e-4
    assert facts["gap"]["greedy"] < 1e-4


@with_vllm
@pytest.mark.real
def test_tokens_come_with_the_frequency_of_their_probability(facts: dict[str, Any]) -> None:
    drawn = facts["drawn"]
    (count,) = drawn["count"]
    for seen, expected in zip(drawn["seen"], drawn["expected"], strict=True):
        assert abs(seen - expected) < 5 * (expected / count) ** 0.5 + 2 / count
    assert max(drawn["expected"]) < 0.9  # else there was nothing to draw


@with_vllm
@pytest.mark.real
@pytest.mark.parametrize("keys", ["top_k", "top_p", "both"])
def test_tokens_come_with_the_frequency_of_the_truncated_softmax(facts: dict[str, Any], keys: str) -> None:
    """And vLLM's log-probabilities are those after the truncation."""
    drawn = facts["truncated"][keys]
    (count,) = drawn["count"]
    for seen, expected in zip(drawn["seen"], drawn["expected"], strict=True):
        assert abs(seen - expected) < (5 * (expected / count) ** 0.5 + 2 / count if expected else 1e-9)
    assert 1 < sum(expected > 0 for expected in drawn["expected"]) < len(drawn["expected"]) / 4
    assert drawn["gap"][0] < 1e-3


@with_vllm
@pytest.mark.real
def test_a_stop_string_ends_a_completion_with_the_same_token_in_both_samplers(facts: dict[str, Any]) -> None:
    """Tokens are bytes and words: strings span tokens, and many bytes are no characters."""
    stopped, tokenizer = facts["stopped"], byte_tokenizer()
    ends = [first_stop(tokenizer, ids, stopped["strings"]) for ids in stopped["free"]]
    cut = [ids[:end] for ids, end in zip(stopped["free"], ends, strict=True)]
    assert stopped["kit"] == stopped["vllm"] == cut
    assert len(set(ends)) > 2
    ended = [first_stop(tokenizer, ids, stopped["strings"]) for ids in stopped["drawn"]]
    for ids, end in zip(stopped["drawn"], ended, strict=True):
        assert end == len(ids) or (end is None and (len(ids) == 40 or ids[-1] == 2))
    assert len(set(ended)) > 5


@with_vllm
@pytest.mark.real
def test_generations_of_a_prompt_stand_next_to_one_another_and_differ(facts: dict[str, Any]) -> None:
    rows = facts["samples"]["first"]
    assert len(rows) == 6 * 3
    groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    assert all(any(row != group[0] for row in group) for group in groups)


@with_vllm
@pytest.mark.real
def test_an_end_token_ends_a_completion_and_stays_and_nothing_else_does(facts: dict[str, Any]) -> None:
    ends = facts["ends"]
    lengths = set()
    for free, cut in zip(ends["free"], ends["cut"], strict=True):
        first = next((i for i, token in enumerate(free) if token in ends["eos"]), len(free) - 1)
        assert cut == free[: first + 1]
        lengths.add(len(cut))
    assert len(lengths) > 2
    assert facts["nothing"] == []


# ---- weights ---------------------------------------------------------------------------------------------------------


@with_vllm
@pytest.mark.real
def test_all_weights_are_sent_once(facts: dict[str, Any]) -> None:
    sent, expected = facts["sent"]
    assert sent == expected


@with_vllm
@pytest.mark.real
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("unknown name", "'model.layers.0.self_attn.q_proj.lora', which its model does not have"),
        ("base_model", "'base_model.model.model.embed_tokens.weight', which its model does not have"),
        ("too large", "q_proj.weight with the shape [128, 64]; in its model it is [64, 64]"),
        ("not gathered", "embed_tokens.weight with the shape [0]"),
        ("one missing", "1 are missing, model.embed_tokens.weight among them"),
        ("too long", "a prompt of 500 tokens and a completion of up to 13 do not fit in the 512"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_engine_continues(facts: dict[str, Any], case: str, said: str) -> None:
    assert said in facts["refused"][case]["words"]
    assert facts["refused"][case]["code"] == ExitCode.CONFIG


# ---- the two processes -----------------------------------------------------------------------------------------------


@with_vllm
@pytest.mark.real
def test_signals_for_the_job_do_nothing_to_the_child(facts: dict[str, Any]) -> None:
    """In second_session they also came right after its birth, and it drew its samples all the same."""
    assert facts["after signals"]


@with_vllm
@pytest.mark.real
def test_a_child_killed_at_work_is_noticed_at_once_and_the_job_may_be_tried_again(facts: dict[str, Any]) -> None:
    killed = facts["killed"]
    assert killed["code"] == ExitCode.RETRY
    assert killed["words"].startswith("vLLM's process ended while generating (SIGKILL")
    assert "first.log" in killed["words"]
    assert killed["returncode"] == -signal.SIGKILL
    assert killed["seconds"] < 30  # the work itself takes minutes; no time-out ends the wait
    assert facts["after it died"]["code"] == ExitCode.RETRY


@with_vllm
@pytest.mark.real
def test_a_closed_engine_leaves_no_process(facts: dict[str, Any]) -> None:
    assert facts["closed"] == -signal.SIGKILL


@with_vllm
@pytest.mark.real
def test_the_child_knows_its_device_and_nothing_of_the_workers_group(facts: dict[str, Any]) -> None:
    environment = facts["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["VLLM_USE_V1"] == "0"
    assert not set(WORKER) - {"CUDA_VISIBLE_DEVICES", "VLLM_USE_V1"} & set(environment)


@with_vllm
@pytest.mark.real
def test_the_log_has_vllms_words_and_does_not_grow_with_every_request(facts: dict[str, Any]) -> None:
    assert "Initializing an LLM engine" in facts["log"]
    assert len(facts["log"].splitlines()) < 100  # more than 4,000 requests were made


@with_vllm
@pytest.mark.real
def test_the_cache_has_no_more_blocks_than_two_full_batches_need(facts: dict[str, Any]) -> None:
    found = re.search(r"# CPU blocks: (\d+),", facts["log"])
    assert found is not None
    assert int(found[1]) == 2 * 256 * 512 // 16  # 256 sequences at a time, 512 tokens, 16 tokens a block


@with_vllm
@pytest.mark.real
@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("head size", ExitCode.CONFIG, ["Head size 16 is not supported", "use_vllm: false"]),
        ("too long a model", ExitCode.CONFIG, ["513", "shorten max_prompt_length or max_completion_length"]),
        ("not in time", ExitCode.RETRY, ["vLLM was not ready in time", "failed.log"]),
    ],
)
def test_a_start_that_fails_has_a_reason_and_an_exit_code(
    facts: dict[str, Any], case: str, code: ExitCode, said: list[str]
) -> None:
    assert facts[case]["code"] == code
    for part in said:
        assert part in facts[case]["words"]


@with_vllm
@pytest.mark.real
def test_a_parent_that_is_killed_takes_its_child_along(
    session: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    parent, facts = session
    child = facts["busy"]
    time.sleep(1)  # into a request that takes minutes
    assert alive(child)
    parent.kill()
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def alive(process: int) -> bool:
    """Whether it runs: gone and not yet reaped is not running."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


# ---- without vLLM ----------------------------------------------------------------------------------------------------


def test_the_childs_environment_on_a_gpu() -> None:
    given = {**WORKER, "PATH": "/bin", "VLLM_CPU_KVCACHE_SPACE": "7", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    environment = child_environment(given, CONFIG)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["HF_TOKEN"] == "hf_secret"  # the model is on the hub
    assert "WANDB_API_KEY" not in environment
    assert "RANK" not in environment
    assert environment["PATH"] == "/bin"


@pytest.mark.parametrize(("value", "kept"), [("expandable_segments:True", None), ("max_split_size_mb:64",) * 2])
def test_the_workers_allocator_setting_is_not_vllms_but_the_users_is(value: str, kept: str | None) -> None:
    environment = child_environment({**WORKER, "PYTORCH_CUDA_ALLOC_CONF": value}, CONFIG)
    assert environment.get("PYTORCH_CUDA_ALLOC_CONF") == kept


def test_the_hubs_token_does_not_go_where_the_model_is_a_directory(tmp_path: Path) -> None:
    environment = child_environment(WORKER, replace(CONFIG, model=str(tmp_path)))
    assert not {name for name, value in environment.items() if "secret" in value}


@pytest.mark.parametrize(("given", "kept"), [({}, "1"), ({"VLLM_CPU_KVCACHE_SPACE": "7"}, "7")])
def test_the_kv_cache_on_a_cpu_is_small_by_default(given: dict[str, str], kept: str) -> None:
    environment = child_environment(given, replace(CONFIG, device="cpu"))
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == kept
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("version", "device", "said"),
    [
        (None, "cpu", "vLLM is not installed here: `make vllm-cpu` once, then use .venv-vllm/bin/mini-r1"),
        (None, "3", "vLLM is not installed here: use the image, or install app/locks/gpu.txt"),
        ("0.7.0", "cpu", "is built for GPUs: `make vllm-cpu` once"),
        ("0.7.0+cpu", "3", "is built for a CPU: use the image"),
    ],
)
def test_the_wrong_vllm_is_refused_before_anything_is_started(
    version: str | None, device: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        assert name == "vllm"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(KitError) as refused:
        VllmEngine(replace(CONFIG, device=device), tmp_path / "log", 1)
    assert said in refused.value.message
    assert refused.value.exit_code == ExitCode.CONFIG
    assert not (tmp_path / "log").exists()


def test_several_steps_at_once_are_refused_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_r1.generation.vllm_process.find_vllm_problem", lambda on_cpu: None)
    with pytest.raises(KitError, match="num_scheduler_steps above 1 needs a GPU") as refused:
        VllmEngine(replace(CONFIG, device="cpu", num_scheduler_steps=8), tmp_path / "log", 1)
    assert refused.value.exit_code == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("No available memory for the cache blocks. Try"), ExitCode.CONFIG, "vllm_gpu_memory_utilization"),
        (
            ValueError("larger than the maximum number of tokens that can be stored in KV cache (64). Try"),
            ExitCode.CONFIG,
            "raise vllm_gpu_memory_utilization, or shorten",
        ),
        (ValueError("Bfloat16 is only supported on GPUs with"), ExitCode.CONFIG, "torch_dtype: float16"),
        (RuntimeError("CUDA error: out of\nmemory"), ExitCode.RETRY, "some/model: CUDA error: out of memory"),
        (AssertionError(), ExitCode.RETRY, "AssertionError"),
    ],
)
def test_the_error_of_vllms_start_has_a_fix(error: Exception, code: ExitCode, said: str) -> None:
    answer = start_error("some/model", error)
    assert said in answer["error"]
    assert answer["exit_code"] == code


NO_VLLM = """
import sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    connection.recv_bytes()
    connection.send_bytes(b"{}")
time.sleep(600)
"""
"""A child that answers the first requests, and no more."""


@pytest.mark.parametrize("answered", [0, 1], ids=["starting", "generating"])
def test_a_child_that_is_busy_when_the_run_is_stopped_is_ended(
    answered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(child: VllmProcess, descriptor: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", NO_VLLM, str(descriptor), str(answered)]
        started.append(subprocess.Popen(command, pass_fds=(descriptor,)))
        return started[-1]

    monkeypatch.setattr(vllm_client, "refuse_environment", lambda config: None)
    monkeypatch.setattr(VllmProcess, "_start", start)
    with pytest.raises(Stopped):
        VllmEngine(CONFIG, tmp_path / "log", 60, stop=lambda: not answered).generate(
            [[1]], SamplingConfig(4, 1.0), eos_token_ids=[], seed=0, stop=lambda: True
        )
    assert [child.returncode for child in started] == [-signal.SIGKILL]
