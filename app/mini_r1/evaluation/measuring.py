"""Measure snapshots or models on one set of problems: claim, complete, judge, write.

One process at a time measures a step of a run, so several calls on one run share its steps.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from rich.console import Console

from mini_r1.console import ProgressLine, printable
from mini_r1.disk_errors import FULL, disk_error, disk_errors
from mini_r1.errors import KitError
from mini_r1.evaluation.answer_engines import Engines
from mini_r1.evaluation.measures import EvaluatedAnswer, count_by_frequency, mean, success
from mini_r1.evaluation.search import search_baselines
from mini_r1.evaluation.source import Problems, Source
from mini_r1.generation.completers import Completer
from mini_r1.generation.model import device
from mini_r1.generation.prompts import completion_texts, render, token_ids
from mini_r1.generation.sampler import SamplingConfig, step_seed
from mini_r1.generation.stop_strings import is_truncated
from mini_r1.machine.provenance import utc_now, versions
from mini_r1.run.files import lock_file, write_json, write_jsonl
from mini_r1.run.reader import completions_file
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.answer_tags import fold_reason
from mini_r1.tasks.registry import AnyTask
from mini_r1.values import duration

RECORDED_VERSIONS = ("mini-r1", "torch", "transformers", "tokenizers", "numpy", "vllm")
KNOWN_AFTER_S = 3.0
"""Before that the rate is the first batch's alone, which includes the warm-up."""

EVALUATION_RANK = -1
"""The rank of evaluation in `step_seed`: no training rank has it, so an evaluation never repeats a rollout's draws."""

KEPT_SAMPLES = 4  # sampled completions of a problem that are kept as text, besides the greedy one


@dataclass(frozen=True)
class Evaluation:
    """Every completion of one evaluation; the figures are made from them."""

    task: AnyTask
    greedy: list[EvaluatedAnswer]  # one for each problem, in the order of the problems
    sampled: list[list[EvaluatedAnswer]]  # `samples` for each problem, in the same order
    temperature: float
    seconds: float

    def rows(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file of answers to read: for each problem the greedy one and the first sampled ones."""
        for greedy, sampled in zip(self.greedy, self.sampled, strict=True):
            yield greedy.row(self.task, step, "greedy")
            yield from (answer.row(self.task, step, "sampled") for answer in sampled[:KEPT_SAMPLES])

    def to_json(self, generator: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return all figures, described in docs/evaluation.md: shares are 0..1, intervals are 95 %."""
        flat = [answer for answers in self.sampled for answer in answers]
        wrong = [answer for answer in flat if not answer.verdict.right]
        samples = len(self.sampled[0])
        figures = success(
            self.task,
            [answer.verdict.problem for answer in self.greedy],
            [float(answer.verdict.right) for answer in self.greedy],
            [sum(answer.verdict.right for answer in answers) for answers in self.sampled],
            samples,
        )
        return {
            "problems": len(self.greedy),
            "samples": samples,
            "temperature": self.temperature,
            **figures,
            "format": mean([answer.verdict.format for answer in flat]),
            **self.task.answer_figures([answer.verdict for answer in flat]),
            "completion_tokens": mean([answer.tokens for answer in flat]),
            "truncated": mean([answer.truncated for answer in flat]),
            "failures": count_by_frequency(
                self.task.classify_failure(a.verdict.reason, truncated=a.truncated) for a in wrong
            ),
            "reasons": count_by_frequency(fold_reason(a.verdict.reason) for a in wrong),
            "baselines": search_baselines(self.sampled, self.task.solvers(generator)),
            "seconds": round(self.seconds, 1),
        }


def measure(
    task: AnyTask,
    completer: Completer,
    problems: Sequence[Any],
    *,
    samples: int,
    sampling: SamplingConfig,
    prompt_style: str,
    seed: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Complete and judge every problem: once greedily, `samples` times as `sampling` says.

    The same arguments give the same completions on the same device: the draws depend on `seed`, not on what was
    sampled before, so two models have the same draws. `on_progress` gets the completions done so far, of
    (1 + samples) for each problem.
    """
    started = time.perf_counter()
    tokenizer = completer.tokenizer
    prefill = task.prompt(prompt_style).prefill
    prompts = token_ids(tokenizer, render(task, tokenizer, problems, prompt_style))
    done = 0

    def progressed(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done)

    def complete(count: int, at: float) -> list[list[EvaluatedAnswer]]:
        config = replace(sampling, temperature=at, num_generations=count)
        ids = completer.complete(prompts, config, step_seed(seed, 0, EVALUATION_RANK), progressed)
        texts = completion_texts(tokenizer, ids)
        answers = [
            EvaluatedAnswer(
                task.judge(text, problem, prefill=prefill),
                len(tokens),
                is_truncated(tokens, text, completer.ends, sampling.stop),
            )
            for problem, text, tokens in zip((p for p in problems for _ in range(count)), texts, ids, strict=True)
        ]
        return [answers[i : i + count] for i in range(0, len(answers), count)]

    greedy = [answers[0] for answers in complete(1, 0.0)]
    sampled = complete(samples, sampling.temperature)
    return Evaluation(task, greedy, sampled, sampling.temperature, time.perf_counter() - started)


class Measurer:
    """Measures one model after another, for one call of `mini-r1 evaluate`; `source` is as the user named it."""

    def __init__(self, problems: Problems, engines: Engines, console: Console, again: bool, source: str) -> None:
        self.problems = problems
        self._engines = engines
        self._console = console
        self._again = again
        self._source = source
        self._made, self._seconds = 0, 0.0  # completions of the steps before, and their time
        if problems.trained_on:
            self.print(
                f"{problems.trained_on} of these {len(problems.asked)} problems were trained on "
                "(attempts/*/completions.jsonl): this is no held-out success"
            )

    def print(self, line: str) -> None:
        """Print a line of progress."""
        self._console.print(printable(line), markup=False)

    def find(self, chosen: Source) -> dict[str, Any] | None:
        """Return the result with the same settings, if it is written already and not to be repeated."""
        return None if self._again else chosen.read_same_result(self.problems)

    def measure(
        self, chosen: Source, title: str, *, wait: bool, steps_after: int = 0
    ) -> tuple[dict[str, Any] | None, bool]:
        """Return a model's result, and whether it was measured here; a KitError if it can't be measured or written.

        If another process is measuring it: that one's result, or None without `wait`.
        """
        path, step = chosen.result_file(self.problems), chosen.step or 0
        other = "waiting for another process that" if wait else "another process"
        with claim_result(path, wait=wait, busy=lambda: self.print(f"step {step}: {other} is measuring it")) as held:
            if not held:
                return None, False
            # Another process may have measured it since this one looked.
            found = self.find(chosen)
            return (found, False) if found else (self._measure(chosen, path, title, steps_after), True)

    def _measure(self, chosen: Source, path: Path | None, title: str, steps_after: int) -> dict[str, Any]:
        chosen.verify()
        self._print_changed_settings(chosen, path)
        try:
            completer = self._engines.load(chosen, self.print)
        except (OSError, KitError):
            chosen.refuse_change()
            raise
        chosen.refuse_change()  # from here on its weights are in memory
        total = len(self.problems.asked) * (1 + chosen.samples)
        started = time.monotonic()
        with ProgressLine(self._console, title, total) as line:
            evaluation = measure(
                chosen.task,
                completer,
                self.problems.asked,
                samples=chosen.samples,
                sampling=chosen.sampling,
                prompt_style=chosen.style,
                seed=chosen.seed,
                on_progress=lambda done: line.update(
                    done,
                    describe_time_left(
                        self._seconds + time.monotonic() - started, self._made + done, total - done, total * steps_after
                    ),
                ),
            )
            self._made, self._seconds = self._made + total, self._seconds + time.monotonic() - started
            figures = evaluation.to_json(chosen.generator)  # takes seconds, so inside the progress line
        result = {**figures, "provenance": self._provenance(chosen, completer)}
        if path is not None:
            result["provenance"]["written_to"] = str(path)
            with disk_errors(path.parent, lambda: "what was measured before is kept"):
                write_jsonl(completions_file(path), evaluation.rows(chosen.step or 0))
                write_json(path, result)  # last: with it the step counts as measured
        return result

    def _provenance(self, chosen: Source, completer: Completer) -> dict[str, Any]:
        where = device()
        problems = self.problems
        return {
            "source": self._source,
            "model": completer.facts,
            "step": chosen.step,
            "snapshot": str(chosen.saved.path) if chosen.saved else None,
            "problems_file": str(chosen.problems_file),
            "problems_in_file": problems.available,
            "limit": problems.limit,
            "selection": problems.selection,
            "engine": completer.name,
            **chosen.settings(problems),
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu x {os.cpu_count()}",
            "versions": {"python": platform.python_version(), **versions(RECORDED_VERSIONS)},
            "date": utc_now(),
            "written_to": None,
        }

    def _print_changed_settings(self, chosen: Source, path: Path | None) -> None:
        before = chosen.read_result(self.problems)
        if before is None or self._again:
            return
        now = chosen.settings(self.problems)
        if changed := [key.replace("_", " ") for key in now if now[key] != before["provenance"].get(key)]:
            self.print(f"{path} was measured with other settings ({', '.join(changed)}): measuring again")


def describe_time_left(seconds: float, made: int, of_step: int, of_others: int) -> str:
    """Return how long all steps will still take, and this one; empty when nothing is left or known.

    `made` completions took `seconds`; `of_step` are left of this step, and `of_others` of those after it.
    """
    if not made or not of_step + of_others or seconds < KNOWN_AFTER_S:
        return ""
    text = f"about {duration(seconds / made * (of_step + of_others))} left"
    return f"{text}, {duration(seconds / made * of_step)} of this step" if of_step and of_others else text


@contextlib.contextmanager
def claim_result(result: Path | None, *, wait: bool, busy: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the claim on a result file while it is measured; yield whether it is held.

    `busy` is called if another process holds it. The claim is a lock on a file, so it ends with the process. On a
    filesystem without locks every process gets it: then a step may be measured twice, and each of its files is still
    complete. A result of None needs no claim.
    """
    if result is None:
        yield True
        return
    lock = result.with_name(f".{result.stem}.lock")
    with lock.open("w") as handle:
        held = lock_file(handle)
        if not held:
            busy()
        try:
            yield held or (wait and lock_file(handle, wait=True))
        finally:
            if held or wait:
                lock.unlink(missing_ok=True)


def refuse_unwritable(run: RunDir) -> None:
    """Make the folder of results, before a model is loaded; a KitError if it can't be made or written."""
    try:
        run.evaluation.mkdir(exist_ok=True)
        with TemporaryFile(dir=run.evaluation):
            pass
    except OSError as error:
        if error.errno in FULL and (full := disk_error(error)):
            raise full from error
        raise KitError(
            f"cannot write {run.evaluation}: {error.strerror}. Give this user (uid {os.getuid()}) write permission "
            "there, or measure a snapshot as a model, which writes nothing: "
            f"`mini-r1 evaluate {run.snapshots}/step-N --problems {run.held_out_file}`"
        ) from error
