"""Under DeepSpeed: the gradient is the plain one, and sharded checkpoints of two ranks are whole and resumed exactly.

transformers 4.48.1 divides a micro-batch's loss by the accumulation, and DeepSpeed's engine divides it again. Adam
hides that, clipping does not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from mini_r1.errors import KitError
from mini_r1.plan.memory import UNKNOWN_LIMITS, UpdateLimits
from mini_r1.recipe.deepspeed_file import DeepSpeedFile, find_deepspeed
from mini_r1.recipe.fields import Recipe
from mini_r1.run.files import write_json
from mini_r1.run.manifest import verify
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.training import arguments, logprobs, rollout_engines
from mini_r1.training.checkpoints import checkpoint_to_resume, written_by
from mini_r1.training.prepare import Policy
from mini_r1.training.rollout import Completion, score
from mini_r1.training.rollout_engines import PolicyEngine
from mini_r1.training.trainer import CountdownTrainer
from mini_r1.training.world import World
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tests.training.silent_attempt import silent_attempt
from tests.training.workers import Workers

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is installed on Linux only"),
]

PROBLEM = Problem((3, 4, 5), 12)
GENERATIONS, ACCUMULATION, RANKS = 4, 4, 2
RIGHT, WRONG, NONE = "</think>\n<answer>3 + 4 + 5</answer>", "</think>\n<answer>3 + 4</answer>", "3 + 4 = 7"
FEW_TOKENS = 120
"""So that an optimizer step has more micro-batches than the recipe's accumulation."""
TEXTS = [  # a line is one prompt's group, which is one micro-batch of stock
    RIGHT, WRONG, NONE, NONE,
    NONE, "4 * 3 = 12" + RIGHT, NONE, WRONG,
    WRONG, NONE, "5 - 4 = 1" + WRONG, "1 + 2",
    NONE, RIGHT, RIGHT, NONE,
]  # fmt: skip


def deepspeed_config(stage: int, bucket: int | None = None) -> dict[str, Any]:
    """The shipped one, or one of a user with another bucket; SGD makes the change of the weights the gradient."""
    values = find_deepspeed(f"zero{stage}").values
    if bucket is not None:
        values["zero_optimization"]["reduce_bucket_size"] = bucket
    if stage == 3:  # this model is small enough never to be sharded otherwise
        values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return values


def config(folder: Path, stage: int, **changes: Any) -> GRPOConfig:
    values = {
        "output_dir": str(folder), "per_device_train_batch_size": 1, "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": 1, "num_generations": GENERATIONS, "max_completion_length": 32, "max_prompt_length": 64,
        "beta": 0.1, "temperature": 1.0, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant",
        "max_grad_norm": 1e6, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "seed": 5, "deepspeed": deepspeed_config(stage) if stage else None,
    }  # fmt: skip
    return GRPOConfig(**{**values, **changes})


def fixed_completions(tokenizer: Any, prompt: str) -> list[Completion]:
    completions = []
    for text in TEXTS:
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        completions.append(Completion(PROBLEM, prompt, [], ids, truncated=False, text=text))
    score(CountdownTask(), completions, {"format": 1.0, "equation": 1.0})
    return completions


def kit(
    args: GRPOConfig,
    model: Any,
    reference: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    tokens: int = UNKNOWN_LIMITS.tokens,
) -> CountdownTrainer:
    completions = fixed_completions(tokenizer, rows[0]["prompt"])
    rollout_engines.sample = lambda *args, **kwargs: [c.ids for c in completions]
    attempt = silent_attempt(Path(args.output_dir))
    return CountdownTrainer(
        attempt, Policy(model, reference, tokenizer), PolicyEngine(attempt.world, [tokenizer.eos_token_id], tokenizer),
        args=args, train_dataset=datasets.Dataset.from_list(rows), limits=UpdateLimits(tokens, 0),
    )  # fmt: skip


def stock(args: GRPOConfig, model: Any, reference: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> GRPOTrainer:
    completions = fixed_completions(tokenizer, rows[0]["prompt"])
    micro_batches = iter([completions[i : i + GENERATIONS] for i in range(0, len(completions), GENERATIONS)])

    def generate(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        ids = [torch.tensor(c.ids) for c in next(micro_batches)]
        right = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        return torch.cat([input_ids.repeat_interleave(GENERATIONS, dim=0), right], dim=1)

    type(model).generate = generate
    worth = {c.text: c.reward for c in completions}
    return GRPOTrainer(
        model, reward_funcs=lambda prompts, completions, **columns: [worth[text] for text in completions], args=args,
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip


def built(
    build: Callable[..., GRPOTrainer], configure: Callable[[], GRPOConfig], policy: Path, prompts: int
) -> GRPOTrainer:
    """A trainer on `prompts` times the same prompt; as in a run, models are loaded before DeepSpeed is configured."""
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    chat = CountdownTask().messages(PROBLEM, "script")
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    rows = [{"prompt": prompt, "nums": list(PROBLEM.nums), "target": PROBLEM.target}] * prompts
    model, reference = (AutoModelForCausalLM.from_pretrained(policy) for _ in range(2))
    return build(configure(), model, reference, tokenizer, rows)


def count_large_gradients() -> list[bool]:
    """Return a list that grows with every reduction of ZeRO-2: whether its gradient did not fit into the bucket."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    reductions, reduce = [], DeepSpeedZeroOptimizer.reduce_ipg_grads

    def counted(self: Any) -> None:
        reductions.append(self.extra_large_param_to_reduce is not None)
        reduce(self)

    DeepSpeedZeroOptimizer.reduce_ipg_grads = counted
    return reductions


def one_step(
    build: Callable[..., GRPOTrainer], stage: int, policy: Path, folder: Path, bucket: int | None = None
) -> None:
    """Take one SGD step at learning rate 1; write the gradient's norm and the gradient, which is what it took off."""
    model, changes, reductions = AutoModelForCausalLM.from_pretrained(policy), {}, []
    if stage:
        arguments.prepare_deepspeed(on_cpu=True)
        reductions = count_large_gradients()
        file = DeepSpeedFile("a test", deepspeed_config(stage, bucket))
        changes = {"deepspeed": arguments.fill_bucket(file, model).values}
    before = model.state_dict()
    # A few tokens a chunk: the backward pass then calculates logits again, with weights that ZeRO-3 has freed.
    logprobs.CHUNK_BYTES = 7 * 4 * len(before["lm_head.weight"])
    trainer = built(build, partial(config, folder, stage, **changes), policy, ACCUMULATION)
    trainer.train()
    after = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    names = [name for name in before if name != "lm_head.weight"]  # tied to the embedding
    (norm,) = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    gradient = torch.cat([(before[name] - after[name]).flatten() for name in names])
    torch.save({"norm": float(norm), "gradient": gradient, "reductions": reductions}, folder / "step.pt")


def step_of(
    build: Callable[..., GRPOTrainer], stage: int, policy: Path, folder: Path, bucket: int | None = None
) -> tuple[float, torch.Tensor, list[bool]]:
    """Return norm, gradient and reductions of another process: DeepSpeed and accelerate keep global state."""
    with Workers(1 if stage else None, one_step, build, stage, policy, folder, bucket, folder=folder) as w:
        (ended,) = w.wait()
    assert ended.code == 0, ended.errors + ended.output
    found = torch.load(folder / "step.pt", weights_only=True)
    return found["norm"], found["gradient"], found["reductions"]


@pytest.fixture(scope="module")
def plain(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, torch.Tensor, list[bool]]:
    """The plain trainer's."""
    return step_of(kit, 0, untrained, tmp_path_factory.mktemp("plain"))


Step = tuple[float, torch.Tensor, list[bool]]


def test_without_deepspeed_stock_is_right(plain: Step, untrained: Path, tmp_path: Path) -> None:
    norm, gradient, _ = step_of(stock, 0, untrained, tmp_path)
    assert norm == pytest.approx(plain[0], rel=1e-4)
    assert norm > 0.1
    torch.testing.assert_close(gradient, plain[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "bucket", "tokens"),
    [(2, None, UNKNOWN_LIMITS.tokens), (2, 1_000, FEW_TOKENS), (3, None, FEW_TOKENS)],
)
def test_zero_s_gradient_equals_that_without_deepspeed(
    plain: Step, untrained: Path, tmp_path: Path, stage: int, bucket: int | None, tokens: int
) -> None:
    """For a step of one micro-batch, and of more than the recipe's accumulation."""
    norm, gradient, reductions = step_of(partial(kit, tokens=tokens), stage, untrained, tmp_path, bucket)
    # With the kit's bucket none is larger. With a GPU's streams such a gradient may be freed too early.
    assert bool(reductions) == (stage == 2)
    assert any(reductions) == (bucket is not None)
    assert norm == pytest.approx(plain[0], rel=1e-4)
    torch.testing.assert_close(gradient, plain[1], rtol=1e-3, atol=1e-6)


def test_stock_divides_the_gradient_by_the_accumulation_twice(plain: Step, untrained: Path, tmp_path: Path) -> None:
    norm, gradient, _ = step_of(stock, 2, untrained, tmp_path)
    assert norm == pytest.approx(plain[0] / ACCUMULATION, rel=1e-4)
    torch.testing.assert_close(gradient, plain[1] / ACCUMULATION, rtol=1e-3, atol=1e-6)


# --- checkpoints of two ranks ---


class Filled(torch.nn.Module):
    """One weight of equal numbers."""

    def __init__(self, value: float, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((size,), value))


def gather_large_and_small(patched: bool, folder: Path) -> None:
    """Gather a large weight and many small ones, and count the times that one is read before it has arrived."""
    import deepspeed

    waiting = arguments.wait_for_every_gather
    if not patched:
        arguments.wait_for_every_gather = lambda: None
    arguments.prepare_deepspeed(on_cpu=True)
    arguments.wait_for_every_gather = waiting
    World(60)
    deepspeed.init_distributed("gloo")
    ds_config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(config_dict_or_path=ds_config, dtype=torch.float32):
        weights = [Filled(1.0, 16_000_000), *(Filled(float(i), 10) for i in range(2, 10))]
    early = 0
    for _ in range(10 if patched else 300):
        with deepspeed.zero.GatheredParameters([each.weight for each in weights]):
            early += any(not each.weight.eq(each.weight[0].item()).all() for each in weights)
            torch.distributed.barrier()
        seen = torch.tensor(early)
        torch.distributed.all_reduce(seen)
        if seen:  # by chance, sooner or later: which weight comes last is the threads' business
            break
    (folder / f"early-{os.environ['RANK']}").write_text(str(early))
    torch.distributed.barrier()


@pytest.mark.parametrize("patched", [False, True], ids=["DeepSpeed", "kit"])
def test_on_gloo_deepspeed_reads_weights_that_have_not_arrived_and_the_kit_waits(patched: bool, tmp_path: Path) -> None:
    environment, early = {"LOCAL_WORLD_SIZE": str(RANKS)}, 0
    for attempt in range(1 if patched else 5):  # the bug is a race, which DeepSpeed sometimes wins
        folder = tmp_path / str(attempt)
        with Workers(RANKS, gather_large_and_small, patched, folder, folder=folder, environment=environment) as workers:
            for ended in workers.wait():
                assert ended.code == 0, ended.errors + ended.output
        early += sum(int(file.read_text()) for file in folder.glob("early-*"))
        if early:
            break
    assert (early == 0) == patched


def two_steps(stage: int, policy: Path, folder: Path, logs: Path) -> None:
    """Train to step 2 and save at each step, from the newest checkpoint in `folder` if there is one.

    Gradients are added up in float32. Rank 0 writes the float32 weights of the last checkpoint's shards into `logs`.
    """
    arguments.prepare_deepspeed(on_cpu=True)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    run = RunDir(folder)
    newest = run.complete_checkpoints()[:1]
    recipe = Recipe(model_name_or_path="builtin:demo", grad_accum_dtype="fp32")
    shards = arguments.deepspeed_values(recipe, DeepSpeedFile("shipped", deepspeed_config(stage)))
    # Adam, so that there is something in the optimizer's shards.
    saved = {
        "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 1e-3,
        "bf16": True, "deepspeed": shards,
    }  # fmt: skip
    # What fits one rank's device needs several micro-batches on the other: both take as many.
    build = partial(kit, tokens=FEW_TOKENS) if os.environ["RANK"] == "1" else kit
    trainer = built(build, partial(config, folder, stage, **saved), policy, RANKS * ACCUMULATION * 2)
    found: set[torch.dtype] = set()
    compute_loss = trainer.compute_loss

    def look(*args: Any, **kwargs: Any) -> torch.Tensor:
        optimizer = trainer.model_wrapped.optimizer
        added = [optimizer.grad_partitions_flat_buffer] if stage == 3 else optimizer.averaged_gradients.get(0) or []
        found.update(gradient.dtype for gradient in added)
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = look
    trainer.train(resume_from_checkpoint=str(newest[0].path) if newest else None)
    assert trainer.state.global_step == 2
    assert next(trainer.model_wrapped.module.parameters()).dtype == torch.bfloat16
    assert found == {torch.float32}
    if os.environ["RANK"] == "0":
        whole = get_fp32_state_dict_from_zero_checkpoint(str(run.complete_checkpoints()[0].path))
        torch.save(whole, logs / "weights.pt")


def on_two_ranks(stage: int, policy: Path, run: RunDir) -> dict[str, torch.Tensor]:
    """Return the weights of the last checkpoint, in float32."""
    logs = run.path.with_suffix(".logs")
    with Workers(
        RANKS, two_steps, stage, policy, run.path, logs, folder=logs, environment={"LOCAL_WORLD_SIZE": str(RANKS)}
    ) as w:
        for ended in w.wait(120):
            assert ended.code == 0, ended.errors + ended.output
    weights: dict[str, torch.Tensor] = torch.load(logs / "weights.pt", weights_only=True)
    return weights


@pytest.mark.parametrize("stage", [2, 3])
def test_sharded_checkpoints_are_complete_and_resumed_exactly(untrained: Path, tmp_path: Path, stage: int) -> None:
    run = RunDir(tmp_path / "run")
    run.attempts.mkdir(parents=True)
    write_json(run.run_file, {"run_id": "5" * 32})
    weights = on_two_ranks(stage, untrained, run)
    newest, first = run.complete_checkpoints()
    assert (newest.step, first.step) == (2, 1)
    assert newest.facts == {"run_id": "5" * 32, "world_size": RANKS, "zero_stage": stage, "logs": {}}
    assert verify(newest, run.run_id) is None
    files = json.loads((newest.path / "manifest.json").read_text())["files"]
    written = {rank: [name for name in files if written_by(name, RANKS) == rank] for rank in range(RANKS)}
    own = {Path(name).name.removeprefix("bf16_") for name in written[1]}
    assert own >= {"rng_state_1.pth", "zero_pp_rank_1_mp_rank_00_optim_states.pt"}
    assert len([name for name in files if "optim_states" in name]) == RANKS
    assert not [name for name in files if name.endswith(".safetensors")], "the weights are in DeepSpeed's files already"
    snapshot = load_file(run.snapshots / "step-2" / "model.safetensors")
    for name, tensor in snapshot.items():
        assert tensor.equal(weights[name].bfloat16()), name

    again = RunDir(Path(shutil.copytree(run.path, tmp_path / "again")))
    shutil.rmtree(again.checkpoints / "step-2")
    shutil.rmtree(again.snapshots / "step-2")
    resumed_weights = on_two_ranks(stage, untrained, again)
    assert again.complete_checkpoints()[0].step == 2
    for name, tensor in resumed_weights.items():
        assert tensor.equal(weights[name]), name
    resumed = json.loads((again.checkpoints / "step-2" / "manifest.json").read_text())["files"]
    assert resumed.keys() == files.keys()
    for name in ("rng_state_0.pth", "rng_state_1.pth", "scheduler.pt"):
        assert resumed.get(name) == files.get(name), name

    with pytest.raises(KitError, match="was written by 2 workers with DeepSpeed ZeRO"):
        checkpoint_to_resume(run, Console(quiet=True), 1, stage)
