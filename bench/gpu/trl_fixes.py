"""What bfloat16 does to log-probabilities, KL and gradients, and the effect of stock's errors on them.

    .venv/bin/python bench/gpu/run.py --out FOLDER --only trl-fixes

Sixteen completions of different length of two prompts of different length, made once; a policy that differs from its
reference, so that the KL is not zero. The truth is the kit's trainer with float32 weights, eager attention and no
TensorFloat-32. Compared with it, on the same completions and advantages, through the trainers' own `compute_loss`:

    the kit     float32 weights and sdpa (nothing may change); bfloat16 as the recipes have it (16-bit weights and
                autocast) with each attention there is; float32 weights under autocast
    stock       TRL 0.14.0 with both prompts in one batch at the recipe's temperature, where it attends to the padding
                and leaves the temperature out; and with one prompt at temperature 1, where it is right, so that only
                its rounding is left. There the truth is the kit's for that batch and temperature

The weights are the same numbers everywhere: those of the bfloat16 model, so only the arithmetic differs.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import _common as common
from mini_r1.run.files import write_json
from mini_r1.run.run_dir import RunDir

GENERATIONS, PROMPTS = common.GENERATIONS, 2
TEMPERATURE, BETA = 0.9, 0.001
NOISE = 0.25
"""How far the policy is from its reference: normal noise on each weight, as a share of that tensor's deviation."""
EXACT = 1e-3
"""Error of float32 with another kernel: mean error of a log-probability in nats, and relative error of the gradient."""
ROUNDED, COSINE = 0.05, 0.99
"""Bars of bfloat16: mean error of a log-probability in nats, and the gradient's cosine with the truth's."""


@dataclass(frozen=True)
class Variant:
    """How a side calculates."""

    name: str
    weights: str
    """Their type."""
    autocast: bool
    attention: str
    stock: bool = False
    alone: bool = False
    """One prompt at temperature 1."""


def variants() -> list[Variant]:
    """The first, and the first that is `alone`, are the truths."""
    found = [
        Variant("float32, eager (the truth)", "float32", False, "eager"),
        Variant("kit, float32, sdpa", "float32", False, "sdpa"),
        Variant("kit, bfloat16, sdpa", "bfloat16", True, "sdpa"),
        Variant("kit, bfloat16, eager", "bfloat16", True, "eager"),
        Variant("kit, float32 weights, autocast, sdpa", "float32", True, "sdpa"),
    ]
    if importlib.util.find_spec("flash_attn") is not None:
        found.append(Variant("kit, bfloat16, flash_attention_2", "bfloat16", True, "flash_attention_2"))
    return [
        *found,
        Variant("stock, float32, sdpa, two prompts", "float32", False, "sdpa", stock=True),
        Variant("stock, bfloat16, sdpa, two prompts", "bfloat16", True, "sdpa", stock=True),
        Variant("float32, eager, one prompt, T 1 (the truth)", "float32", False, "eager", alone=True),
        Variant("kit, bfloat16, sdpa, one prompt, T 1", "bfloat16", True, "sdpa", alone=True),
        Variant("stock, bfloat16, sdpa, one prompt, T 1", "bfloat16", True, "sdpa", stock=True, alone=True),
    ]


# --- what is compared


@dataclass
class Seen:
    """Results of one variant."""

    logps: list[Any]
    """Log-probabilities of each completion's real tokens, in the order in which they were made; float32."""
    kl: float
    gradient: dict[str, Any]


class Case:
    """The completions and the weights."""

    def __init__(self, folder: Path, limit: int, scratch: Path) -> None:
        import torch
        from mini_r1.generation.model import load_tokenizer
        from mini_r1.generation.prompts import render, token_ids
        from mini_r1.tasks.countdown.countdown_task import CountdownTask
        from mini_r1.tasks.countdown.problem import Problem
        from mini_r1.training.rollout import Completion, set_advantages

        self.folder, self.scratch = folder, scratch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(str(folder), None)
        problems = [Problem((19, 36, 55, 7), 65), Problem((44, 95, 3), 98)]
        self.prompts = render(CountdownTask(), self.tokenizer, problems, "script")
        # Of Countdown's own prompts the lengths hardly differ: one gets a longer system message.
        self.prompts[0] = self.prompts[0].replace("You are a helpful", "You are a patient and " * 6 + "helpful", 1)
        chosen = torch.Generator().manual_seed(common.SEED)
        self.completions, self.rewards = [], []
        for number, ids in enumerate(token_ids(self.tokenizer, self.prompts)):
            for length in common.drawn_lengths(number, limit):
                made = torch.randint(10, len(self.tokenizer), (length - 1,), generator=chosen).tolist()
                made.append(self.tokenizer.eos_token_id)
                text = self.tokenizer.decode(made, skip_special_tokens=True)
                self.completions.append(Completion(problems[number], self.prompts[number], ids, made, False, text))
            self.rewards += [0.0, 1.0, 2.0, 0.0, 1.0, 1.0, 0.0, 2.0]
        for completion, reward in zip(self.completions, self.rewards, strict=True):
            completion.reward = reward
        set_advantages(self.completions, GENERATIONS)

    def model(self, variant: Variant, noisy: bool) -> Any:
        """The policy or its reference, on the device."""
        import torch
        from mini_r1.generation.model import load_model

        model = load_model(str(self.folder), None, "bfloat16", variant.attention).to(self.device)
        if noisy:
            noise = torch.Generator(device=self.device).manual_seed(common.SEED)
            with torch.no_grad():
                for parameter in model.parameters():
                    scale = NOISE * parameter.float().std(correction=0)
                    drawn = torch.randn(parameter.shape, generator=noise, device=self.device)
                    parameter.add_((scale * drawn).to(parameter.dtype))
        return model.to(getattr(torch, variant.weights))

    def args(self, variant: Variant) -> Any:
        """TRL's configuration of one call of `compute_loss`."""
        from trl import GRPOConfig

        return GRPOConfig(
            output_dir=str(self.scratch / "trl-fixes"), per_device_train_batch_size=PROMPTS,
            gradient_accumulation_steps=1, num_generations=GENERATIONS, max_completion_length=4096,
            max_prompt_length=4096, beta=BETA, temperature=1.0 if variant.alone else TEMPERATURE, report_to=[],
            disable_tqdm=True, bf16=variant.autocast, use_cpu=self.device.type == "cpu", seed=common.SEED,
        )  # fmt: skip

    def of(self, variant: Variant) -> Sequence[Any]:
        """The completions of its batch."""
        return self.completions[:GENERATIONS] if variant.alone else self.completions

    def see(self, variant: Variant) -> Seen:
        """Loss and gradient of a variant."""
        return self._stock(variant) if variant.stock else self._kit(variant)

    def _kit(self, variant: Variant) -> Seen:
        import datasets
        import torch
        from mini_r1.recipe.fields import Recipe
        from mini_r1.training.prepare import Policy
        from mini_r1.training.rollout import collate
        from mini_r1.training.rollout_engines import PolicyEngine
        from mini_r1.training.trainer import CountdownTrainer
        from mini_r1.training.world import World

        args = self.args(variant)  # before the world: it sets up accelerate's state
        pad = self.tokenizer.pad_token_id
        attempt = Mock(  # ignores what the trainer reports
            callbacks=[], run=RunDir(self.scratch / "trl-fixes"), world=World(60),
            recipe=Recipe(model_name_or_path="bench", max_steps=1),
        )  # fmt: skip
        policy = Policy(self.model(variant, noisy=True), self.model(variant, noisy=False).eval(), self.tokenizer)
        trainer = CountdownTrainer(
            attempt, policy, PolicyEngine(attempt.world, policy.eos_token_ids, self.tokenizer), args=args,
            train_dataset=datasets.Dataset.from_list([{"prompt": "", "nums": [1], "target": 1}] * PROMPTS),
        )  # fmt: skip
        completions = self.of(variant)
        batch = collate(completions, 1 / len(completions), pad, self.device)
        model = trainer.accelerator.prepare_model(trainer.model)  # as `train` does: autocast
        seen: list[Any] = []
        calculate = trainer._completion_logps

        def spied(model: Any, inputs: Any) -> Any:
            seen.append(calculate(model, inputs))
            return seen[-1]

        trainer._completion_logps = spied
        with torch.no_grad(), trainer._reference() as reference:
            batch["reference_logps"] = trainer._completion_logps(reference, batch)
        trainer.compute_loss(model, batch).backward()
        logps = [each.detach().float() for each in seen[1].split([len(c.ids) for c in completions])]
        return Seen(logps, trainer._micro_values[0][2].item(), self._gradient(model))

    def _stock(self, variant: Variant) -> Seen:
        import datasets
        import torch
        from trl import GRPOTrainer
        from trl.trainer import grpo_trainer

        completions = self.of(variant)
        rewards = self.rewards[: len(completions)]
        reference = self.model(variant, noisy=False).eval()
        with patch.object(grpo_trainer, "create_reference_model", lambda _: reference):
            trainer = GRPOTrainer(
                self.model(variant, noisy=True), reward_funcs=[lambda **_: rewards], args=self.args(variant),
                train_dataset=datasets.Dataset.from_list([{"prompt": ""}] * PROMPTS),
                processing_class=self.tokenizer,
            )  # fmt: skip
        width = max(len(c.ids) for c in completions)
        pad = self.tokenizer.pad_token_id
        right = torch.tensor([c.ids + [pad] * (width - len(c.ids)) for c in completions], device=self.device)
        model = trainer.accelerator.prepare_model(trainer.model)
        model.generate = lambda input_ids, **_: torch.cat(
            [input_ids.repeat_interleave(GENERATIONS, dim=0), right], dim=1
        )
        prompts = [{"prompt": prompt} for prompt in self.prompts[: len(completions) // GENERATIONS]]
        with stacked(right.shape) as seen:
            loss = trainer.compute_loss(model, prompts)
        loss.backward()
        logps = [row[: len(c.ids)].detach().float() for row, c in zip(seen[0], completions, strict=True)]
        return Seen(logps, trainer._metrics["kl"][0], self._gradient(model))

    def _gradient(self, model: Any) -> dict[str, Any]:
        return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def stacked(shape: Sequence[int]) -> Any:
    """What `torch.stack` returned of this shape meanwhile: stock's log-probabilities, the policy's come first."""
    import torch

    seen: list[Any] = []
    plain = torch.stack

    def spied(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        if result.shape == shape and result.is_floating_point():
            seen.append(result)
        return result

    with patch.object(torch, "stack", spied):
        yield seen


def compared(seen: Seen, truth: Seen) -> dict[str, float]:
    """Errors in nats, of the KL relative; the gradients' cosine, the ratio of their norms, the relative difference."""
    import torch

    errors = torch.cat([(a - b).abs() for a, b in zip(seen.logps, truth.logps, strict=True)])
    dot = own = others = apart = 0.0
    for name, right in truth.gradient.items():
        here = seen.gradient[name]
        dot += (here.double() * right).sum().item()
        own += here.double().square().sum().item()
        others += right.double().square().sum().item()
        apart += (here.double() - right).square().sum().item()
    return {
        "logp_mean_error": errors.mean().item(),
        "logp_max_error": errors.max().item(),
        "kl": seen.kl,
        "kl_error": seen.kl / truth.kl - 1,
        "cosine": dot / (own * others) ** 0.5,
        "norm_ratio": (own / others) ** 0.5,
        "gradient_error": (apart / others) ** 0.5,
    }


def measure(out: Path, scratch: Path, shape: str, limit: int) -> None:
    """Every variant against its truth."""
    folder = common.made_model(shape, scratch)

    import torch

    case = Case(folder, limit, scratch)
    lengths = [len(c.ids) for c in case.completions]
    result: dict[str, Any] = {
        "shape": shape,
        "batch": {
            "prompt_tokens": [len(case.completions[i * GENERATIONS].prompt_ids) for i in range(PROMPTS)],
            "completion_tokens": lengths,
        },
        "bars": {"exact": EXACT, "logp_mean_error": ROUNDED, "cosine": COSINE},
        "variants": {},
    }  # fmt: skip
    truths: dict[bool, Seen] = {}
    for variant in variants():
        seen = case.see(variant)
        truth = truths.setdefault(variant.alone, seen)
        found = result["variants"][variant.name] = compared(seen, truth)
        write_json(out, result)
        print(variant.name, {key: f"{value:.3g}" for key, value in found.items()}, flush=True)
        del seen, truth
        gc.collect()  # trainers and their callbacks hold each other, and the models with them
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    write_json(out, {**result, "met": bars(result["variants"]), "complete": True})


def bars(seen: dict[str, dict[str, float]]) -> dict[str, bool]:
    """By what is asked, whether it holds."""
    rounded = [values for name, values in seen.items() if name.startswith("kit, ") and "float32, sdpa" not in name]
    exact, stock = seen["kit, float32, sdpa"], seen["stock, bfloat16, sdpa, two prompts"]
    kit = seen["kit, bfloat16, sdpa"]
    return {
        f"float32 with sdpa is the truth to {EXACT:g}": max(exact["logp_mean_error"], exact["gradient_error"]) <= EXACT,
        f"the kit's bfloat16: log-probabilities within {ROUNDED:g} nats in the mean, gradient's cosine >= {COSINE:g}":
            all(v["logp_mean_error"] <= ROUNDED and v["cosine"] >= COSINE for v in rounded),
        "stock's errors are larger than the kit's rounding": stock["logp_mean_error"] > kit["logp_mean_error"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=common.SHAPES, required=True)
    parser.add_argument("--limit", type=int, default=384, help="longest completion")
    given = parser.parse_args()
    measure(given.out, given.scratch, given.shape, given.limit)


if __name__ == "__main__":
    main()
