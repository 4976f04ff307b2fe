"""The gradient under DeepSpeed is the plain one; with stock TRL 0.14.0 it is divided once too often.

transformers 4.48.1 divides a micro-batch's loss by the accumulation, and DeepSpeed's engine divides it again. Adam
hides that, clipping does not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from mini_r1.countdown import task
from mini_r1.recipe import WatchRecipe
from mini_r1.rundir import RunDir
from mini_r1.training import trainer as trainer_module
from mini_r1.training.rollout import Completion, RewardPlan, judge
from mini_r1.training.trainer import CountdownTrainer
from mini_r1.training.watch import Watch
from mini_r1.training.world import World
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tests.training.workers import Workers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is installed on Linux only"
)

PROBLEM = task.Problem((3, 4, 5), 12)
GENERATIONS, ACCUMULATION = 4, 4
REWARDS = RewardPlan(("format", "equation"), (1.0, 1.0))
RIGHT, WRONG, NONE = "</think>\n<answer>3 + 4 + 5</answer>", "</think>\n<answer>3 + 4</answer>", "3 + 4 = 7"
TEXTS = [  # a line is one prompt's group, which is one micro-batch
    RIGHT, WRONG, NONE, NONE,
    NONE, "4 * 3 = 12" + RIGHT, NONE, WRONG,
    WRONG, NONE, "5 - 4 = 1" + WRONG, "1 + 2",
    NONE, RIGHT, RIGHT, NONE,
]  # fmt: skip


def deepspeed_config(stage: int) -> dict[str, Any]:
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        **dict.fromkeys([*automatic, "gradient_clipping"], "auto"),
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,  # this model is small enough never to be sharded otherwise
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,  # SGD: the change of the weights is the gradient
    }


def config(folder: Path, stage: int) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=1, gradient_accumulation_steps=ACCUMULATION, max_steps=1,
        num_generations=GENERATIONS, max_completion_length=32, max_prompt_length=64, beta=0.1, temperature=1.0,
        optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=1e6, logging_steps=1,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=5,
        deepspeed=deepspeed_config(stage) if stage else None,
    )  # fmt: skip


def fixed_completions(tokenizer: Any, prompt: str) -> list[Completion]:
    completions = []
    for text in TEXTS:
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        completions.append(Completion(PROBLEM, prompt, [], ids, truncated=False, text=text))
    judge(completions, REWARDS)
    return completions


def kit(args: GRPOConfig, model: Any, tokenizer: Any, rows: list[dict[str, Any]], policy: Path) -> CountdownTrainer:
    completions = fixed_completions(tokenizer, rows[0]["prompt"])
    trainer_module.sample = lambda *args, **kwargs: [c.ids for c in completions]
    return CountdownTrainer(
        model, reference=AutoModelForCausalLM.from_pretrained(policy), rewards=REWARDS, args=args,
        train_dataset=datasets.Dataset.from_list(rows), held_out=[], processing_class=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id], run=RunDir(Path(args.output_dir)), world=World(60),
        watch=Watch(WatchRecipe()), on_rollout=lambda step, records: None, on_phase=lambda phase: None,
        on_trouble=lambda step, troubles: None, callbacks=[],
    )  # fmt: skip


def stock(args: GRPOConfig, model: Any, tokenizer: Any, rows: list[dict[str, Any]], policy: Path) -> GRPOTrainer:
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


def one_step(build: Callable[..., GRPOTrainer], stage: int, policy: Path, folder: Path) -> None:
    """Take one SGD step at learning rate 1; write the gradient's norm and the gradient, which is what it took off."""
    if stage:
        import deepspeed

        # A shared-memory all-reduce that is compiled at first use; without it gloo's is taken.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    args = config(folder, stage)
    prompt = tokenizer.apply_chat_template(
        task.messages(PROBLEM, "script"), tokenize=False, continue_final_message=True
    )
    rows = [{"prompt": prompt, "nums": list(PROBLEM.nums), "target": PROBLEM.target}] * ACCUMULATION
    trainer = build(args, AutoModelForCausalLM.from_pretrained(policy), tokenizer, rows, policy)
    trainer.train()
    after = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    names = [name for name in before if name != "lm_head.weight"]  # tied to the embedding
    (norm,) = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    gradient = torch.cat([(before[name] - after[name]).flatten() for name in names])
    torch.save({"norm": float(norm), "gradient": gradient}, folder / "step.pt")


def step_of(build: Callable[..., GRPOTrainer], stage: int, policy: Path, folder: Path) -> tuple[float, torch.Tensor]:
    """Norm and gradient of a process of its own: DeepSpeed and accelerate keep global state."""
    # LOCAL_SIZE: else DeepSpeed counts NUMA nodes with the program numactl, which need not be there.
    environment = {"LOCAL_SIZE": "1"}
    with Workers(
        1 if stage else None, one_step, build, stage, policy, folder, folder=folder, environment=environment
    ) as w:
        (ended,) = w.wait()
    assert ended.code == 0, ended.errors + ended.output
    found = torch.load(folder / "step.pt", weights_only=True)
    return found["norm"], found["gradient"]


@pytest.fixture(scope="module")
def plain(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, torch.Tensor]:
    """The plain trainer's."""
    return step_of(kit, 0, untrained, tmp_path_factory.mktemp("plain"))


def test_without_deepspeed_stock_is_right(plain: tuple[float, torch.Tensor], untrained: Path, tmp_path: Path) -> None:
    norm, gradient = step_of(stock, 0, untrained, tmp_path)
    assert norm == pytest.approx(plain[0], rel=1e-4)
    assert norm > 0.1
    torch.testing.assert_close(gradient, plain[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_s_gradient_is_the_plain_one(
    plain: tuple[float, torch.Tensor], untrained: Path, tmp_path: Path, stage: int
) -> None:
    norm, gradient = step_of(kit, stage, untrained, tmp_path)
    assert norm == pytest.approx(plain[0], rel=1e-4)
    torch.testing.assert_close(gradient, plain[1], rtol=1e-3, atol=1e-6)


def test_stock_divides_it_by_the_accumulation_once_too_often(
    plain: tuple[float, torch.Tensor], untrained: Path, tmp_path: Path
) -> None:
    norm, gradient = step_of(stock, 2, untrained, tmp_path)
    assert norm == pytest.approx(plain[0] / ACCUMULATION, rel=1e-4)
    torch.testing.assert_close(gradient, plain[1] / ACCUMULATION, rtol=1e-3, atol=1e-6)
