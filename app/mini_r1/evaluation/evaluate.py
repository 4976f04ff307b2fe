"""Measure how well a model solves problems: one greedy completion for each, and `samples` sampled ones."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mini_r1.evaluation.measures import EvaluatedAnswer, classify_failure, count_by_frequency, mean, success
from mini_r1.evaluation.search import search_baselines
from mini_r1.generation.completers import Completer
from mini_r1.generation.prompts import completion_texts, render, token_ids
from mini_r1.generation.sampler import SamplingConfig, step_seed
from mini_r1.tasks.countdown import task

EVALUATION_RANK = -1
"""The rank of evaluation in `step_seed`: no training rank has it, so an evaluation never repeats a rollout's draws."""

KEPT_SAMPLES = 4
"""Sampled completions of a problem that are kept as text, besides the greedy one."""


@dataclass(frozen=True)
class Evaluation:
    """Every completion of one evaluation; the figures are made from them."""

    greedy: list[EvaluatedAnswer]  # one for each problem, in the order of the problems
    sampled: list[list[EvaluatedAnswer]]  # `samples` for each problem, in the same order
    temperature: float
    seconds: float

    def rows(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the answers to read: for each problem the greedy one and the first KEPT_SAMPLES sampled ones.

        Like the rows of a training's completions, with `kind` (`greedy`, `sampled`) and without what only the trainer
        has: `prompt`, `reward`, `advantage`.
        """
        for greedy, sampled in zip(self.greedy, self.sampled, strict=True):
            yield greedy.row(step, "greedy")
            yield from (answer.row(step, "sampled") for answer in sampled[:KEPT_SAMPLES])

    def to_json(self, rule: task.GeneratorSpec) -> dict[str, Any]:
        """Return all figures, described in docs/evaluation.md: shares are 0..1, intervals are 95 %."""
        flat = [answer for answers in self.sampled for answer in answers]
        wrong = [answer for answer in flat if not answer.verdict.equation]
        samples = len(self.sampled[0])
        figures = success(
            [answer.problem for answer in self.greedy],
            [float(answer.verdict.equation) for answer in self.greedy],
            [sum(answer.verdict.equation for answer in answers) for answers in self.sampled],
            samples,
        )
        return {
            "problems": len(self.greedy),
            "samples": samples,
            "temperature": self.temperature,
            **figures,
            "format": mean([answer.verdict.format for answer in flat]),
            "tries": mean([answer.verdict.tries for answer in flat]),
            "completion_tokens": mean([answer.tokens for answer in flat]),
            "truncated": mean([answer.truncated for answer in flat]),
            "failures": count_by_frequency(classify_failure(a.verdict.reason, a.truncated) for a in wrong),
            "reasons": count_by_frequency(task.fold_reason(a.verdict.reason) for a in wrong),
            "baselines": search_baselines(self.sampled, rule),
            "seconds": round(self.seconds, 1),
        }


def measure(
    completer: Completer,
    problems: Sequence[task.Problem],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    prompt_style: str,
    seed: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Complete and judge every problem: once greedily, `samples` times at `temperature`.

    The same arguments give the same completions on the same device: the draws depend on `seed`, not on what was
    sampled before, so two models have the same draws. `on_progress` gets the completions done so far, of
    (1 + samples) for each problem.
    """
    started = time.perf_counter()
    tokenizer = completer.tokenizer
    prompts = token_ids(tokenizer, render(tokenizer, problems, prompt_style))
    done = 0

    def progressed(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done)

    def complete(count: int, at: float) -> list[list[EvaluatedAnswer]]:
        sampling = SamplingConfig(max_new_tokens, at, num_generations=count)
        ids = completer.complete(prompts, sampling, step_seed(seed, 0, EVALUATION_RANK), progressed)
        texts = completion_texts(tokenizer, ids)
        answers = [
            EvaluatedAnswer(task.judge(text, problem), len(tokens), tokens[-1] not in completer.ends)
            for problem, text, tokens in zip((p for p in problems for _ in range(count)), texts, ids, strict=True)
        ]
        return [answers[i : i + count] for i in range(0, len(answers), count)]

    greedy = [answers[0] for answers in complete(1, 0.0)]
    sampled = complete(samples, temperature)
    return Evaluation(greedy, sampled, temperature, time.perf_counter() - started)
