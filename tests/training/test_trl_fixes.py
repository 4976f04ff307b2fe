"""Bugs of stock TRL 0.14.0 over whole steps: each is shown on stock first, then absent here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from mini_r1.cli.training_commands import train
from mini_r1.errors import ExitCode, KitError
from mini_r1.generation import sampler
from mini_r1.run.reader import read_completions, read_metrics
from mini_r1.run.run_dir import RunDir
from mini_r1.training import checkpoints, rollout_engines
from mini_r1.training import trainer as kit_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.conftest import rows, without_times

Recipe = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


def stock(untrained: Path, folder: Path, model: Any = None, **changes: Any) -> GRPOTrainer:
    """Stock TRL on four prompts, with a reward that differs from completion to completion."""
    values = {
        "output_dir": str(folder), "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "num_generations": 4, "max_completion_length": 6, "report_to": [], "use_cpu": True, "seed": 5,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(untrained, padding_side="left")
    return GRPOTrainer(
        model or AutoModelForCausalLM.from_pretrained(untrained),
        reward_funcs=lambda prompts, completions: [float(len(c) % 7) for c in completions],
        args=GRPOConfig(**{**values, **changes}),
        train_dataset=datasets.Dataset.from_list([{"prompt": f"{n} 2 3"} for n in range(1, 9)]),
        processing_class=tokenizer,
    )


def test_one_rollout_serves_all_micro_batches(
    small_recipe: Recipe, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1: stock generates once for every micro-batch."""
    trainer = stock(untrained, tmp_path / "stock", max_steps=2)
    calls = {"stock": 0, "kit": 0}
    generate, sample = trainer.model.generate, rollout_engines.sample

    def counted(side: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[side] += 1
            return function(*args, **kwargs)

        return call

    trainer.model.generate = counted("stock", generate)
    trainer.train()
    monkeypatch.setattr(rollout_engines, "sample", counted("kit", sample))
    train(str(small_recipe(max_steps=2, gradient_accumulation_steps=2)), [], tmp_path / "run")
    assert calls == {"stock": 4, "kit": 2}


def test_dtype_and_attention_reach_a_model_given_by_name(small_recipe: Recipe, untrained: Path, tmp_path: Path) -> None:
    """Row 9: stock takes them from model_init_kwargs alone, which the published script never sets."""
    theirs = stock(untrained, tmp_path / "stock", model=str(untrained), bf16=True).model
    assert (theirs.dtype, theirs.config._attn_implementation) == (torch.float32, "sdpa")
    recipe = small_recipe(max_steps=1, bf16=True, torch_dtype="bfloat16", attn_implementation="eager")
    assert train(str(recipe), [], tmp_path / "run") == ExitCode.FINISHED
    model = RunDir(tmp_path / "run").read_record()["attempts"][0]["model"]
    assert (model["dtype"], model["attention"]) == ("bfloat16", "eager")


def test_a_group_of_one_is_nan_in_stock_and_refused_here(small_recipe: Recipe, untrained: Path, tmp_path: Path) -> None:
    """Row 17: the standard deviation of one value."""
    trainer = stock(untrained, tmp_path / "stock", num_generations=1)
    assert math.isnan(trainer.compute_loss(trainer.model, [{"prompt": "1 2 3"}]).item())
    with pytest.raises(KitError, match="num_generations"):
        train(str(small_recipe(num_generations=1)), [], tmp_path / "run")


def test_older_checkpoints_are_deleted_after_the_new_one_is_complete(
    small_recipe: Recipe, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 20: transformers deletes before callbacks hear of the save, so before any manifest could be written."""
    seen: list[list[str]] = []

    class Look(TrainerCallback):
        def on_save(self, *args: Any, **kwargs: Any) -> None:
            seen.append(sorted(p.name for p in (tmp_path / "stock").glob("checkpoint-*")))

    trainer = stock(untrained, tmp_path / "stock", max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [["checkpoint-1"], ["checkpoint-2"]]

    run, at_seal = RunDir(tmp_path / "run"), []
    seal = checkpoints.seal

    def look(scratch: Path, final: Path, **kwargs: Any) -> None:
        if final.parent == run.checkpoints:
            at_seal.append([saved.step for saved in run.complete_checkpoints()])
        seal(scratch, final, **kwargs)

    monkeypatch.setattr(checkpoints, "seal", look)
    train(str(small_recipe(save_steps=1)), [], run.path)
    assert at_seal == [[], [1], [2, 1], [3, 2]]
    assert [saved.step for saved in run.complete_checkpoints()] == [4, 3]


def test_every_step_is_full_even_at_the_end_of_the_data(small_recipe: Recipe, untrained: Path, tmp_path: Path) -> None:
    """The last step of a pass over the data: stock has fewer micro-batches in it and divides by as many as ever."""
    trainer = stock(untrained, tmp_path / "stock", gradient_accumulation_steps=3, max_steps=6)
    micro_steps, seen, loss = [0], list[int](), trainer.compute_loss

    def counted(*args: Any, **kwargs: Any) -> Any:
        micro_steps[0] += 1
        return loss(*args, **kwargs)

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(micro_steps[0])
            micro_steps[0] = 0

    trainer.compute_loss = counted
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [3, 3, 2, 3, 3, 2]  # eight prompts

    run = RunDir(tmp_path / "run")
    recipe = small_recipe(gradient_accumulation_steps=2, max_steps=-1, num_train_epochs=1.5, save_strategy="no")
    assert train(str(recipe), [], run.path) == ExitCode.FINISHED
    prompts = Counter(record["step"] for record in read_completions(run))
    assert prompts == dict.fromkeys(range(1, 8), 2 * 2 * 4)  # 18 problems, 4 a step, 1.5 passes: 6.75 steps
    assert [row["epoch"] for row in read_metrics(run)] == pytest.approx([step * 4 / 18 for step in range(1, 8)])


def test_metrics_between_two_log_points_survive_a_resume(small_recipe: Recipe, untrained: Path, tmp_path: Path) -> None:
    """Row 21: saved in the middle of a window of the log, stock logs the second half alone after a resume."""
    settings: dict[str, Any] = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}
    whole = stock(untrained, tmp_path / "stock", **settings)
    whole.train()
    resumed = stock(untrained, tmp_path / "stock", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stock" / "checkpoint-3"))
    rewards = [
        next(row["reward"] for row in trainer.state.log_history if row["step"] == 4) for trainer in (whole, resumed)
    ]
    single = stock(untrained, tmp_path / "single", **{**settings, "logging_steps": 1, "save_strategy": "no"})
    single.train()
    each = [row["reward"] for row in single.state.log_history if "reward" in row]
    assert rewards[0] == pytest.approx(sum(each) / 4)
    assert rewards[1] == pytest.approx(each[3])
    assert rewards[0] != pytest.approx(rewards[1])

    recipe = str(small_recipe(logging_steps=4, save_steps=3))
    assert train(recipe, [], tmp_path / "whole") == ExitCode.FINISHED
    run = _stopped_after_step_3(recipe, tmp_path / "run")
    assert train(recipe, [], run) == ExitCode.FINISHED
    assert sorted(p.name for p in (run / "attempts").iterdir()) == ["1", "2"]
    logged = [without_times(rows(path / "attempts" / name / "metrics.jsonl")) for path, name in
              ((tmp_path / "whole", "1"), (run, "2"))]  # fmt: skip
    assert [row["step"] for row in logged[0]] == [4]
    assert logged[0] == logged[1]


def _stopped_after_step_3(recipe: str, folder: Path) -> Path:
    """A run whose process is gone after the checkpoint of step 3."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kit_trainer.CountdownTrainer, "get_batch_samples", _gone_at_step_4)
        with pytest.raises(RuntimeError, match="gone"):
            train(recipe, [], folder)
    return folder


_HONEST = kit_trainer.CountdownTrainer.get_batch_samples


def _gone_at_step_4(self: kit_trainer.CountdownTrainer, *args: Any) -> Any:
    if self.state.global_step == 3:
        raise RuntimeError("gone")
    return _HONEST(self, *args)


def test_stock_cuts_the_prompt_it_trains_on_and_the_kit_refuses_it(
    small_recipe: Recipe, untrained: Path, tmp_path: Path
) -> None:
    """Row 4. The engine is a stand-in for vLLM's LLM: it keeps the text that it is asked to continue."""
    trainer = stock(untrained, tmp_path / "stock", max_prompt_length=2, num_generations=2)
    asked: list[str] = []

    def generate(prompts: list[str], **_: Any) -> list[Any]:
        asked.extend(prompts)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(7, 8))] * 2) for _ in prompts]

    trainer.llm, trainer.sampling_params, trainer._last_loaded_step = SimpleNamespace(generate=generate), None, 0
    trainer.args.use_vllm = True
    widths: list[int] = []
    trainer.model.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    trainer.compute_loss(trainer.model, [{"prompt": "1 2 3"}])
    answered = len(trainer.processing_class(asked[0])["input_ids"])
    trained_on = widths[0] - 2  # without the two tokens of the completion
    assert trained_on == 2 < answered
    with pytest.raises(KitError, match="max_prompt_length is 20: raise it to at least"):
        train(str(small_recipe(max_prompt_length=20)), [], tmp_path / "run")


def test_stock_decodes_without_a_cache_under_checkpointing_and_the_kit_with_one(
    small_recipe: Recipe, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 22: transformers switches the cache off for a model that is training with gradient checkpointing."""
    read: dict[str, list[int]] = {"stock": [], "kit": []}

    def watched(side: str, function: Callable[..., Any], model: Any = None) -> Callable[..., Any]:
        """`function` with every forward pass inside it noted: how many tokens of a sequence it reads."""

        def call(*args: Any, **kwargs: Any) -> Any:
            def note(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                read[side].append(named["input_ids"].shape[1])

            handle = (model or args[0]).register_forward_pre_hook(note, with_kwargs=True)
            try:
                return function(*args, **kwargs)
            finally:
                handle.remove()

        return call

    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    trainer = stock(untrained, tmp_path / "stock", max_steps=1, gradient_accumulation_steps=1, **checkpointing)
    trainer.model.generate = watched("stock", trainer.model.generate, trainer.model)
    trainer.train()
    monkeypatch.setattr(rollout_engines, "sample", watched("kit", rollout_engines.sample))
    recipe = small_recipe(max_steps=1, gradient_accumulation_steps=1, **checkpointing)
    assert train(str(recipe), [], tmp_path / "run") == ExitCode.FINISHED
    prompt, *later = read["stock"]
    assert later == list(range(prompt + 1, prompt + 1 + len(later)))
    assert len(later) > 2
    assert set(read["kit"][1:]) == {1}
    assert len(read["kit"]) > 2


def test_stock_samples_from_fifty_tokens_and_the_kit_from_all(untrained: Path, tmp_path: Path) -> None:
    """Row 23: transformers' default `top_k` of 50; the log-probabilities in the loss are of the whole distribution."""
    trainer = stock(untrained, tmp_path / "stock", num_generations=500)
    flat = trainer.model
    with torch.no_grad():  # all tokens alike but for the rounding: 50 of them are in front
        flat.get_input_embeddings().weight.mul_(0.01)
    vocabulary = flat.config.vocab_size
    prompts = torch.full((4, 3), 7)
    first = flat.generate(prompts, generation_config=trainer.generation_config)[:, 3]
    assert len(set(first.tolist())) <= 50 < vocabulary
    config = sampler.SamplingConfig(max_new_tokens=1, temperature=0.9, num_generations=2000)
    drawn = sampler.sample(flat, [[7, 7, 7]], config, eos_token_ids=[], pad_token_id=0, seed=0)
    assert len({ids[0] for ids in drawn}) > 150
