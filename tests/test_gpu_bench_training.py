"""The parts of bench/gpu that no GPU has run: the update, the sync and the newest TRL, run on a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.real_stack import PYTHON, needs_vllm
from tests.gpu_benches import GPU, gpu_benches

MODULES = ("run", "update_time", "sync", "peers", "_report", "_common")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with gpu_benches(*MODULES) as benches:
        yield benches


def step(what: str, seconds: float, again: bool = False) -> dict[str, Any]:
    attention = {"calls": {"mask none, FLASH_ATTENTION": 4}, "shapes": 2}
    phases = {"reference": seconds, "update": 2 * seconds}
    return {"what": what, "again": again, "phases": phases, "lengths": [300] * 64, "attention": attention}


UPDATE = {
    "side": "kit", "shape": "0.5b", "torch": "2.5.1", "complete": True,
    "steps": [step("warm-up", 9), step("timed", 1), step("as it is", 3), step("as it is", 1, again=True)],
    "profile": {
        "largest": [{"name": "gemm", "count": 7, "seconds": 0.3}], "all_seconds": 0.6, "operations": 1234,
        "launches": 2345, "waits": {"aten::nonzero": 5},
    },
}  # fmt: skip
SYNC = {"shape": "1.5b", "device": "cuda", "bytes": 2**30, "tensors": 9, "start": 30.0, "syncs": [3.0, 2.0, 2.0],
        "copies": [1.0, 1.0, 1.0], "complete": True}  # fmt: skip
PEERS = {
    "shape": "0.5b", "tokens": 400, "tiny": False,
    "sides": {"kit": {"seconds": [9.0, 2.0, 2.0], "tokens": 400.0}, "trl": {"not_run": "no registry"}},
}  # fmt: skip


# --- one command


def test_without_a_gpu_it_says_so_and_measures_nothing(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, arguments in ((bench.run, []), (bench.peers, [])):
        monkeypatch.setattr(bench._common, "gpu", lambda: "")
        monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path / "out"), *arguments])
        with pytest.raises(
            SystemExit, match=r"no NVIDIA GPU was found, and nothing was measured.*tiny` for a smoke run"
        ):
            module.main()
    assert not (tmp_path / "out").exists()


def test_it_announces_every_unit_with_its_seconds_and_what_is_there(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = bench.run.units("full", 2)
    (tmp_path / f"{units[0].name}.json").write_text(json.dumps({"complete": True}))
    bench.run.announce(bench.run.batches(units), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"update-0\.5b-kit +is there", lines[0])
    assert [line.split()[0] for line in lines[:-1]] == [unit.name for unit in units]
    assert {"update", "sync", "memory", "scratch", "step-time"} < {re.split(r"-\d", line)[0] for line in lines[:-1]}
    at_once = max(unit.expected_s for unit in units if unit.name.startswith("scratch"))
    alone = sum(unit.expected_s for unit in units[1:] if unit.script not in bench.run.AT_ONCE)
    memory = max(unit.expected_s for unit in units if unit.name.startswith("memory"))
    assert f" {(at_once + alone + memory) / 60:.0f} min" in lines[-1]


def test_a_unit_that_could_not_run_is_reported_and_run_again(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync without vLLM, in its own process as always."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    unit = bench.run.Unit("sync-tiny", "sync.py", {"shape": "tiny"}, 60)
    given = SimpleNamespace(out=tmp_path, scratch=tmp_path)
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("this Python has vLLM")
    assert bench.run._measured(unit, given, float("inf")) is False
    assert not bench.run._whole(unit, tmp_path / "sync-tiny.json")
    assert re.search(r"sync-tiny: not run after \d+ s", capsys.readouterr().err)
    text = bench.run.entry({"sync-tiny": bench.run.read_object(tmp_path / "sync-tiny.json")}, ["sync-tiny"])
    assert "sync-tiny: NOT RUN: vllm" in text.replace("vLLM", "vllm")
    assert "still to do: sync-tiny" in text


# --- the update


def test_each_variant_of_the_update_runs_with_new_shapes_and_then_with_these_again(bench: Any) -> None:
    for side in ("kit", "stock"):
        steps = bench.update_time.steps_of(side)
        assert Counter(each.what for each in steps[:6]) == {"warm-up": 2, "timed": 3, "profile": 1}
        assert {each.draw for each in steps[:6]} == {0}
        pairs = list(zip(steps[6::2], steps[7::2], strict=True))
        assert all(new.what == late.what and new.draw == late.draw and late.again > new.again for new, late in pairs)
        assert len({new.draw for new, _ in pairs}) == len(pairs)
        longest = [max(bench._common.drawn_lengths(0, 1024 - bench.update_time.SHORTER * new.draw)) for new, _ in pairs]
        assert len(set(longest)) == len(pairs)


def test_with_and_without_a_mask_the_attention_calculates_the_same_and_is_counted_apart(bench: Any) -> None:
    import torch
    from torch.nn import functional

    query, key, value = torch.randn(3, 2, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    plain = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    with bench.update_time.attention(mask=True):
        masked = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    with bench.update_time.attention(mask=False):
        hidden = torch.zeros(2, 1, 5, 5)
        unmasked = functional.scaled_dot_product_attention(query, key, value, attn_mask=hidden)
    torch.testing.assert_close(masked, plain)
    torch.testing.assert_close(unmasked, plain)
    seen = Counter({("explicit", "2x1x5x8", "MATH"): 3, ("explicit", "2x1x6x8", "MATH"): 1, ("none", "a", "FLASH"): 2})
    assert bench.update_time.attended(seen) == {"calls": {"mask explicit, MATH": 4, "mask none, FLASH": 2}, "shapes": 3}


def test_the_results_say_seconds_shares_kernels_and_what_was_not_run(bench: Any) -> None:
    text = "\n".join(bench._report.lines({"update-0.5b-kit": UPDATE, "sync-1.5b": SYNC, "peers-0.5b": PEERS}))
    tokens = 64 * (300 + bench._common.PROMPT)
    share = 6 * bench._common.SHAPES["0.5b"].parameters * tokens / 2 / 989e12
    assert f"update 2.00 s, {share:.1%}" in text
    assert re.search(r"300\.0 ms  50\.0% +7 x gemm", text)
    assert "1,234 operations called, 2,345 kernels launched; the host waits: nonzero 5" in text
    assert re.search(r"as it is +3\.00 \+ 6\.00 +1\.00 \+ 2\.00  mask none, FLASH_ATTENTION", text)
    assert "first 3.00 s, then 2.00 s, 0.54 GB/s" in text
    assert "0.50 of that speed" in text
    assert f"kit: 2.00 s a step, {64 * 400 / 2:,.0f} tokens a second" in text
    assert "trl: NOT RUN: no registry" in text
    assert bench._report.bars({"update-0.5b-kit": UPDATE, "sync-1.5b": SYNC, "peers-0.5b": PEERS}) == []


# --- the newest TRL


def test_both_sides_get_the_same_model_lengths_and_settings(bench: Any, tmp_path: Path) -> None:
    changes = bench.peers.recipe_changes(389, 6, tiny=False)
    recipe = bench._common.bench_recipe(tmp_path / "model", **changes)
    job = bench.peers.trl_job(recipe, tmp_path / "model", tmp_path / "rows.json", tiny=False)
    sets = bench._common.bench_changes(tmp_path / "model", **changes)
    command = bench.peers.kit_command(Path("recipe.yaml"), tmp_path / "run", sets, tiny=False)
    assert command[2:5] == ["mini_r1", "launch", "recipe.yaml"]
    for words in (f"model_name_or_path={job['model']}", "max_completion_length=389", "use_vllm=true", "max_steps=6"):
        assert words in command
    trl = job["settings"]
    assert (trl["max_completion_length"], trl["max_steps"], trl["vllm_mode"]) == (389, 6, "colocate")
    completions = trl["per_device_train_batch_size"] * trl["gradient_accumulation_steps"]
    assert completions == recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * 8 == 64
    for key in ("beta", "temperature", "learning_rate", "num_generations", "seed", "vllm_gpu_memory_utilization"):
        assert trl[key] == getattr(recipe, key)
    assert trl["gradient_checkpointing"] is recipe.gradient_checkpointing is False
    assert recipe.use_vllm
    assert trl["use_vllm"]
    assert json.loads(json.dumps(job)) == job


def test_the_dry_run_prints_how_trl_is_installed_with_exact_versions(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINI_R1_CACHE", str(tmp_path))
    text = bench.peers.dry_run()
    folder = next(word for word in text.split() if word.startswith(str(tmp_path)))
    assert f"{sys.executable} -m venv --clear {folder}" in text
    assert f"{folder}/bin/python -m pip --disable-pip-version-check install --quiet --requirement" in text
    versions = re.findall(r"^  (\S+)==(\d+(?:\.\d+)+)$", text, re.MULTILINE)
    assert {"trl": "1.16.0", "vllm": "0.31.0", "torch": "2.13.0"}.items() <= dict(versions).items()
    assert len(versions) == len(bench.peers.REQUIREMENTS.splitlines())
    assert list(tmp_path.iterdir()) == []


# --- each in its own process, at a tiny size


def run_bench(script: str, *arguments: str | Path, python: str | Path = sys.executable) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, GPU / script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.exhaustive
@needs_vllm
@pytest.mark.real
def test_the_sync_and_the_update_run_at_a_tiny_size(tmp_path: Path) -> None:
    """The update reaches into trainer and attention, the sync is with the real vLLM on the CPU."""
    printed = run_bench(
        "run.py", "--scale", "tiny", "--out", tmp_path / "out", "--scratch", tmp_path / "s", "--only",
        "sync,update-tiny-kit", "--json", python=PYTHON,
    )  # fmt: skip
    results = json.loads(printed)["results"]
    sync, update = results["sync-tiny"], results["update-tiny-kit"]
    assert sync["complete"]
    assert update["complete"]
    assert len(sync["syncs"]) == 6
    assert sync["bytes"] > 2 * 4096 * 64  # bfloat16 embeddings, and the layers
    calls = {(seen["what"], call) for seen in update["steps"] for call in seen["attention"]["calls"]}
    assert all(("explicit" in call) for what, call in calls if what.startswith("explicit mask"))
    assert all(("none" in call) for what, call in calls if what.startswith("no mask"))
    assert update["profile"]["operations"] > 1000
    lengths = {seen["what"]: seen["lengths"] for seen in update["steps"]}
    assert {len(each) for each in lengths.values()} == {16}  # 8 prompts, 2 completions each


@pytest.mark.exhaustive
def test_the_peers_run_at_a_tiny_size_as_far_as_they_are_installed(tmp_path: Path) -> None:
    arguments = ("--tiny", "--out", tmp_path / "out", "--scratch", tmp_path / "s", "--tokens", "16", "--steps", "4")
    result = json.loads(run_bench("peers.py", *arguments, "--sides", "kit", "--json"))
    assert len(result["sides"]["kit"]["seconds"]) == 3
    assert result["sides"]["kit"]["tokens"] == pytest.approx(16, abs=1)
