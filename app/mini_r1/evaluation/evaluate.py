"""How well a model solves given problems: one greedy completion for each, and `samples` sampled ones."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mini_r1.countdown import task
from mini_r1.errors import KitError
from mini_r1.evaluation.statistics import cluster_bootstrap, pass_at_k
from mini_r1.generation.model import eos_token_ids
from mini_r1.generation.prompts import render, token_ids
from mini_r1.generation.sampler import SamplingConfig, sample, step_seed

BATCH_ROWS = 256
"""Sequences decoded at once. A 3B model with 1,300 tokens a row holds about 12 GB of keys and values with it."""
EVALUATION_RANK = -1
"""The rank of evaluation in `step_seed`: no training rank has it, so an evaluation never repeats a rollout's draws."""

OnProgress = Callable[[int], None]
"""Called with the completions done so far, of (1 + samples) for each problem."""

_NUMBER = re.compile(r"-?[0-9]+(?:\.\.\.)?(?:/[0-9]+(?:\.\.\.)?)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of a problem, judged."""

    problem: task.Problem
    text: str
    tokens: int
    truncated: bool
    """Cut at the longest length allowed, before the model ended it."""
    verdict: task.Verdict


@dataclass(frozen=True)
class Evaluation:
    """Every completion of one evaluation; the figures are made from them."""

    greedy: list[Answer]
    """One for each problem, in the order of the problems."""
    sampled: list[list[Answer]]
    """`samples` for each problem, in the same order."""
    temperature: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All figures; shares are 0..1, intervals are 95 % by cluster bootstrap over problems with the same numbers.

        `problems`, `samples`, `temperature`; `greedy` and `greedy_ci95` (pass@1 of the greedy completion); `sampled`
        and `ci95` (pass@1 of the sampled ones); `pass_at_k` ({"1": {"value", "ci95"}, ...}: powers of two up to
        `samples`, and `samples`). Of the sampled completions: `format` (share that keeps it), `tries` (mean
        calculations in the thought), `completion_tokens` (mean), `truncated` (share), `reasons` (of the wrong ones,
        most frequent first, numbers folded to N). `by` ({"numbers": {"3": {"n", "greedy", "greedy_ci95", "sampled",
        "ci95"}}, "operators": ...}); `seconds`.
        """
        problems = [answer.problem for answer in self.greedy]
        clusters = [problem.numbers_key for problem in problems]
        greedy = [float(answer.verdict.equation) for answer in self.greedy]
        right = [sum(answer.verdict.equation for answer in answers) for answers in self.sampled]
        samples = len(self.sampled[0])
        shares = [count / samples for count in right]
        flat = [answer for answers in self.sampled for answer in answers]
        at_k = {}
        for k in sorted({*(2**i for i in range(samples.bit_length())), samples}):
            values = [pass_at_k(samples, count, k) for count in right]
            at_k[str(k)] = {"value": _mean(values), "ci95": _interval(values, clusters)}
        reasons = Counter(folded(answer.verdict.reason) for answer in flat if not answer.verdict.equation)
        return {
            "problems": len(problems),
            "samples": samples,
            "temperature": self.temperature,
            "greedy": _mean(greedy),
            "greedy_ci95": _interval(greedy, clusters),
            "sampled": _mean(shares),
            "ci95": _interval(shares, clusters),
            "pass_at_k": at_k,
            "format": _mean([answer.verdict.format for answer in flat]),
            "tries": _mean([task.tries(answer.text) for answer in flat]),
            "completion_tokens": _mean([answer.tokens for answer in flat]),
            "truncated": _mean([answer.truncated for answer in flat]),
            "by": _by_strata(problems, greedy, shares),
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            "seconds": round(self.seconds, 1),
        }


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[task.Problem],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    prompt_style: str,
    seed: int,
    on_progress: OnProgress | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Evaluation:
    """Complete and judge every problem: once greedily, `samples` times at `temperature`.

    The same arguments give the same completions on the same device: the draws depend on `seed`, not on what was
    sampled before, so two models meet the same luck.

    Args:
        model: on its device; its mode is restored.
        tokenizer: the model's, with a chat template.
        problems: at least one.
        samples: sampled completions for each problem, at least 1.
        temperature: of the sampled ones, above 0.
        max_new_tokens: longest completion.
        prompt_style: `script` or `notebook`.
        seed: of the sampling.
        on_progress: called after each batch.
        batch_rows: sequences decoded at once; sampled completions change with it, greedy ones do not.

    Raises:
        KitError: a number is out of range, or there is no problem.
        DataError: an unknown prompt style.
    """
    if samples < 1:
        raise KitError(f"the number of samples must be at least 1, found {samples}")
    if temperature <= 0:
        raise KitError(f"the sampling temperature must be above 0, found {temperature:g}; greedy is measured anyway")
    if max_new_tokens < 1:
        raise KitError(f"the longest completion must be at least 1 token, found {max_new_tokens}")
    if not problems:
        raise KitError("there are no problems to evaluate on")
    started = time.perf_counter()
    prompts = token_ids(tokenizer, render(tokenizer, problems, prompt_style))
    ends = eos_token_ids(model, tokenizer)
    done = 0

    def progressed(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done)

    def complete(count: int, at: float) -> list[list[Answer]]:
        ids = sample(
            model,
            prompts,
            SamplingConfig(max_new_tokens, at, num_generations=count, batch_rows=batch_rows),
            eos_token_ids=ends,
            pad_token_id=tokenizer.pad_token_id,
            seed=step_seed(seed, 0, EVALUATION_RANK),
            progress=progressed,
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers = [
            Answer(problem, text, len(tokens), tokens[-1] not in ends, task.judge(text, problem))
            for problem, text, tokens in zip((p for p in problems for _ in range(count)), texts, ids, strict=True)
        ]
        return [answers[i : i + count] for i in range(0, len(answers), count)]

    greedy = [answers[0] for answers in complete(1, 0.0)]
    sampled = complete(samples, temperature)
    return Evaluation(greedy, sampled, temperature, time.perf_counter() - started)


def folded(reason: str) -> str:
    """A verdict's reason with every number as N, so that `result is 7, not 24` and `result is 5/2, not 30` are one."""
    return _NUMBER.sub("N", reason)


def _by_strata(
    problems: Sequence[task.Problem], greedy: Sequence[float], shares: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Success within each group of `task.strata`."""
    groups: dict[str, dict[str, list[int]]] = {}
    for i, problem in enumerate(problems):
        for name, value in task.strata(problem).items():
            groups.setdefault(name, {}).setdefault(value, []).append(i)
    by: dict[str, dict[str, Any]] = {}
    for name, values in groups.items():
        by[name] = {}
        for value, rows in sorted(values.items()):
            clusters = [problems[i].numbers_key for i in rows]
            of_greedy, of_shares = [greedy[i] for i in rows], [shares[i] for i in rows]
            by[name][value] = {
                "n": len(rows),
                "greedy": _mean(of_greedy),
                "greedy_ci95": _interval(of_greedy, clusters),
                "sampled": _mean(of_shares),
                "ci95": _interval(of_shares, clusters),
            }
    return by


def _interval(values: Sequence[float], clusters: Sequence[tuple[int, ...]]) -> list[float]:
    return [round(limit, 6) for limit in cluster_bootstrap(values, clusters)]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
