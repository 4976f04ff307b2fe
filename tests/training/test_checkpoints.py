"""Snapshots, manifests, the checkpoint that a run resumes from, and a disk that is really full."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.run.files import write_json
from mini_r1.run.manifest import MANIFEST, seal, verify
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training.checkpoints import (
    check_space,
    checkpoint_to_resume,
    save_snapshot,
    saving,
    space_needed,
    written_by,
)
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import without_times, write_recipe
from tests.small_disk import fill, make_room, small_disk

RUN_ID = "0123456789abcdef"
MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    write_json(run.run_file, {"run_id": RUN_ID})
    return run


def save(run: RunDir, step: int, *, run_id: str = RUN_ID, size: int = 10, **facts: Any) -> Path:
    scratch = run.checkpoints / f"checkpoint-{step}"
    scratch.mkdir(parents=True)
    (scratch / "optimizer.pt").write_bytes(bytes(size))
    seal(scratch, run.checkpoints / f"step-{step}", run_id=run_id, **facts)
    return run.checkpoints / f"step-{step}"


# --- snapshots ---


@pytest.fixture
def model(untrained: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(untrained)


@pytest.fixture
def tokenizer(untrained: Path) -> Any:
    return AutoTokenizer.from_pretrained(untrained)


@pytest.mark.parametrize(
    ("held", "kept"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_a_snapshot_of_any_model_has_16_bit_weights(
    model: Any, tokenizer: Any, run: RunDir, held: torch.dtype, kept: torch.dtype
) -> None:
    model = model.to(held)
    save_snapshot(model, tokenizer, run, 2)
    (saved,) = run.complete_snapshots()
    assert verify(saved, RUN_ID) is None
    weights = load_file(saved.path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {kept}
    assert "lm_head.weight" not in weights  # tied to the embedding: saved once
    for name, tensor in weights.items():
        assert tensor.equal(model.state_dict()[name].to(kept))
    loaded = AutoModelForCausalLM.from_pretrained(saved.path, torch_dtype="auto")
    assert loaded.dtype == kept
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(saved.path).chat_template == tokenizer.chat_template


def test_a_snapshot_uses_gathered_weights_of_a_sharded_model(model: Any, tokenizer: Any, run: RunDir) -> None:
    gathered = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    gathered["lm_head.weight"] = gathered["model.embed_tokens.weight"]
    save_snapshot(model, tokenizer, run, 2, gathered)
    weights = load_file(run.snapshots / "step-2" / "model.safetensors")
    assert weights.keys() == model.state_dict().keys() - {"lm_head.weight"}
    assert all(tensor.eq(1).all() for tensor in weights.values())


@pytest.mark.parametrize("gathered", [False, True])
def test_a_snapshot_of_an_adapter_holds_no_base_weights(
    model: Any, tokenizer: Any, run: RunDir, gathered: bool
) -> None:
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    state = adapted.state_dict()
    save_snapshot(adapted, tokenizer, run, 2, state if gathered else None)
    folder = run.snapshots / "step-2"
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in name and tensor.dtype == torch.bfloat16 for name, tensor in weights.items())
    for name, tensor in weights.items():
        assert tensor.equal(state[name.replace(".weight", ".default.weight")].bfloat16())
    assert not list(folder.glob("model*"))
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (folder / "tokenizer.json").is_file()


def test_a_half_written_snapshot_is_replaced_when_its_step_is_saved_again(
    model: Any, tokenizer: Any, run: RunDir
) -> None:
    for value in (1.0, 2.0):
        torch.nn.init.constant_(model.model.norm.weight, value)
        save_snapshot(model, tokenizer, run, 2)
    (saved,) = run.complete_snapshots()
    assert verify(saved, RUN_ID) is None
    assert load_file(saved.path / "model.safetensors")["model.norm.weight"].eq(2).all()
    assert [path.name for path in run.snapshots.iterdir()] == ["step-2"]


# --- whose file ---


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rng_state_3.pth", 3),
        ("rng_state.pth", 0),
        ("global_step10/zero_pp_rank_3_mp_rank_00_optim_states.pt", 3),
        ("global_step10/bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt", 2),
        ("global_step10/zero_pp_rank_1_mp_rank_00_model_states.pt", 1),
        ("global_step10/mp_rank_00_model_states.pt", 0),
        ("model-00003-of-00004.safetensors", 0),
        ("trainer_state.json", 0),
        ("latest", 0),
        ("zero_to_fp32.py", 0),
        ("rng_state_7.pth", 0),  # of no rank there is: rank 0 has to account for it
        ("my_rng_state_3.pth", 0),
        ("rng_state_3.pth.bak", 0),
    ],
)
def test_the_rank_that_wrote_a_file(name: str, rank: int) -> None:
    assert written_by(name, 4) == rank


# --- disk space ---


def test_the_next_save_needs_as_much_space_as_the_last_one(run: RunDir, model: Any, tokenizer: Any) -> None:
    assert space_needed(run, 1000) == 14_000
    save(run, 2, size=5)
    checkpoint = save(run, 4, size=50_000)
    of_checkpoint = 50_000 + (checkpoint / MANIFEST).stat().st_size
    assert space_needed(run, 1000) == of_checkpoint + 2000
    save_snapshot(model, tokenizer, run, 4)
    taken = sum(path.stat().st_size for path in (run.snapshots / "step-4").iterdir())
    assert space_needed(run, 1000) == of_checkpoint + taken


def test_the_estimate_of_the_first_save_is_an_upper_bound(small_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """But for the tokenizer, the logs and random states, which do not grow with the model."""
    run = RunDir(tmp_path / "run")
    assert train(str(small_recipe(max_steps=1, rewards={"random": 1.0})), [], run.path) == ExitCode.FINISHED
    parameters = run.read_record()["attempts"][0]["model"]["parameters"]
    tensors = [
        "checkpoints/step-1/model.safetensors",
        "checkpoints/step-1/optimizer.pt",
        "snapshots/step-1/model.safetensors",
    ]
    taken = sum((run.path / name).stat().st_size for name in tensors)
    assert 0.9 < taken / space_needed(RunDir(tmp_path), parameters) < 1.05, "1, and the names of the tensors"


def test_too_little_disk_space_is_reported_before_a_byte_is_written(run: RunDir) -> None:
    free = shutil.disk_usage(run.path).free
    check_space(run, 1)
    with pytest.raises(KitError, match=r"it starts from the beginning") as caught:
        check_space(run, free + (1 << 40))
    save(run, 6)
    with pytest.raises(KitError, match=r"it resumes from step 6") as caught:
        check_space(run, free + (1 << 40))
    assert caught.value.exit_code == ExitCode.RETRY
    assert str(run.path) in caught.value.message
    assert "GiB" in caught.value.message


# --- which checkpoint ---


def resumed(run: RunDir, world_size: int = 1, zero_stage: int = 0) -> tuple[int | None, str]:
    """Return the step that a start resumes from, and what it prints."""
    console = Console(file=io.StringIO(), width=1000)
    saved = checkpoint_to_resume(run, console, world_size, zero_stage)
    return saved.step if saved else None, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_new_run_prints_nothing_about_checkpoints(run: RunDir) -> None:
    run.run_file.unlink()
    assert resumed(run) == (None, "")


def test_the_newest_checkpoint_is_used_silently(run: RunDir) -> None:
    save(run, 9)
    save(run, 10)
    assert resumed(run) == (10, "")


def test_an_extra_checkpoint_is_pruned_but_never_a_good_one_for_damaged_ones(run: RunDir) -> None:
    for step in (2, 4, 6):
        save(run, step)
    for step in (8, 10):
        put("optimizer.pt", b"cut")(save(run, step))
    assert resumed(run)[0] == 6
    assert [saved.step for saved in run.complete_checkpoints()] == [6, 4]


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (put("optimizer.pt", b"cut"), "optimizer.pt has 3 bytes, not 10"),
        (put("optimizer.pt", b"0123456789"), "optimizer.pt does not have the hash of its manifest"),
        (put("scheduler.pt", b"a pickle"), "scheduler.pt is not in its manifest"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_reported_and_renamed(
    run: RunDir, damage: Callable[[Path], object], said: str
) -> None:
    save(run, 3)
    damage(save(run, 6))
    step, printed = resumed(run)
    assert step == 3
    assert f"checkpoint of step 6 is damaged and skipped: {said}" in printed
    assert "starting from the beginning" not in printed
    aside = run.checkpoints / "skipped-step-6"
    assert str(aside) in printed
    assert aside.is_dir()
    save(run, 5)  # an earlier step than the damaged one, as after a signal: both good ones stay
    run.prune_checkpoints()
    assert resumed(run) == (5, "")
    assert [saved.step for saved in run.complete_checkpoints()] == [5, 3]


def test_a_checkpoint_of_another_run_is_never_loaded(run: RunDir) -> None:
    save(run, 3)
    save(run, 6, run_id="f" * 16)
    step, printed = resumed(run)
    assert step == 3
    assert "checkpoint of step 6 is damaged and skipped: it belongs to another run" in printed


def test_a_run_without_a_usable_checkpoint_starts_from_the_beginning(run: RunDir) -> None:
    for step in (3, 6):
        put("optimizer.pt", b"cut")(save(run, step))
    step, printed = resumed(run)
    assert step is None
    assert printed.count("damaged and skipped") == 2
    assert "no checkpoint can be used: starting from the beginning" in printed
    assert not run.complete_checkpoints()


@pytest.mark.parametrize("content", ["", "{}", '{"run_id": ""}'])
def test_checkpoints_without_run_json_are_refused(run: RunDir, content: str) -> None:
    save(run, 3)
    run.run_file.write_text(content)
    with pytest.raises(KitError, match=r"run\.json is missing or damaged") as caught:
        resumed(run)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert (run.checkpoints / "step-3").is_dir()


def test_sharded_state_needs_the_number_of_workers_that_wrote_it(run: RunDir) -> None:
    save(run, 3, world_size=3, zero_stage=2)
    assert resumed(run, 3, 2) == (3, "")
    with pytest.raises(
        KitError, match=r"\(step 3\) was written by 3 workers with DeepSpeed ZeRO.* with 3 workers again"
    ):
        resumed(run, 2, 2)
    assert (run.checkpoints / "step-3").is_dir()


@pytest.mark.parametrize(
    ("then", "now", "start_with"), [(2, 3, "zero2"), (3, 0, "zero3"), (0, 2, "none"), (3, 2, "zero3")]
)
def test_state_of_another_zero_stage_is_refused_with_the_option_that_resumes_it(
    run: RunDir, then: int, now: int, start_with: str
) -> None:
    save(run, 3, world_size=2, zero_stage=then)
    with pytest.raises(KitError, match=rf"\(step 3\).* start with --deepspeed {start_with} again"):
        resumed(run, 2, now)
    assert (run.checkpoints / "step-3").is_dir()


def test_unsharded_state_is_resumed_by_any_number_of_workers(run: RunDir) -> None:
    save(run, 3, world_size=3, zero_stage=0)
    assert [resumed(run, size)[0] for size in (1, 2, 4)] == [3, 3, 3]


# --- a disk that is really full ---


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64m") as disk:
        yield disk


@pytest.mark.parametrize("write", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_failed_write_is_one_error_and_frees_its_space(disk: Path, write: Callable[[Any, Path], None]) -> None:
    run = RunDir(disk)
    scratch = run.checkpoints / "checkpoint-2"
    scratch.mkdir(parents=True)
    fill(disk, MIB // 2)
    expected = rf"cannot write {scratch}: No space left on device \(its disk has"
    with pytest.raises(KitError, match=expected) as caught, saving(run, main=True):
        write({"weight": torch.zeros(MIB)}, scratch / "weights")
    assert caught.value.exit_code == ExitCode.RETRY
    assert not scratch.exists()
    assert shutil.disk_usage(disk).free >= MIB // 4


def test_other_errors_than_the_disk_s_are_unchanged(run: RunDir) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), saving(run, main=True):
        torch.nn.Linear(1, 1).load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(1)})
    with pytest.raises(SafetensorError, match="no such thing"), saving(run, main=True):
        raise SafetensorError("no such thing")


def test_ranks_other_than_0_delete_nothing(run: RunDir) -> None:
    scratch = run.checkpoints / "checkpoint-2"
    scratch.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), saving(run, main=False):
        raise ZeroDivisionError
    assert scratch.is_dir()


@pytest.fixture(scope="module")
def whole(untrained: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunDir]:
    """A recipe of six steps and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = str(write_recipe(folder / "six.yaml", untrained, max_steps=6, save_steps=2, logging_steps=2))
    run = RunDir(folder / "run")
    assert train(recipe, [], run.path) == ExitCode.FINISHED
    return recipe, run


@pytest.mark.parametrize(
    ("left", "hidden"),
    [(0.9, None), (0.05, SafetensorError), (0.3, SafetensorError), (0.6, RuntimeError)],
    ids=["seen before", "in the snapshot", "in the weights", "in the optimizer's state"],
)
def test_a_run_resumes_from_its_last_checkpoint_when_a_full_disk_has_space_again(
    whole: tuple[str, RunDir],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: float,
    hidden: type[Exception] | None,
) -> None:
    """The second save has too little disk space: seen before it begins, or hidden in a library's error."""
    recipe, expected = whole
    run = RunDir(disk / "run")

    def needed_after_others_wrote(run: RunDir, trained: int, *, snapshot: bool) -> int:
        needed = space_needed(run, trained, snapshot=snapshot)
        if run.complete_checkpoints():
            fill(disk, int(left * needed))
        return needed

    with monkeypatch.context() as patched:
        patched.setattr("mini_r1.training.saving_trainer.space_needed", needed_after_others_wrote)
        if hidden is not None:  # a quota, or somebody who writes at the same time
            patched.setattr("mini_r1.training.saving_trainer.check_space", lambda run, needed: None)
        with pytest.raises(KitError) as caught:
            train(recipe, [], run.path)
    assert caught.value.exit_code == ExitCode.RETRY
    if hidden is None:
        assert "Free space on that disk" in caught.value.message
    else:
        assert "No space left on device" in caught.value.message
        assert isinstance(caught.value.__cause__, hidden)
    assert caught.value.message.endswith("then run the same command again: it resumes from step 2.")
    state = run.read_state()
    assert (state["state"], state["exit_code"]) == ("failed", 150)
    assert state["reason"] in caught.value.message
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-2"]

    make_room(disk)
    assert train(recipe, [], run.path) == ExitCode.FINISHED
    assert without_times(read_metrics(run)) == without_times(read_metrics(expected))
    assert list(read_completions(run)) == list(read_completions(expected))
    for name in ("model.safetensors", "optimizer.pt"):
        last, uninterrupted = (each.checkpoints / "step-6" / name for each in (run, expected))
        assert last.read_bytes() == uninterrupted.read_bytes(), name
    assert [saved.step for saved in run.complete_checkpoints()] == [6, 4]
    assert [saved.step for saved in run.complete_snapshots()] == [6, 4, 2]
