"""The completions of the samples browser: which of them are on the page, and how they are packed.

A page holds a limited number. If there are more, completions that tell a story are kept (the first right ones, the
first that said "wait" and were right, ...), and the rest is thinned evenly over the steps. Columns instead of objects:
20,000 completions take half the space and are parsed in a fraction of the time.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import accumulate
from typing import Any

from mini_r1.console import text
from mini_r1.errors import KitError
from mini_r1.run.reader import RunData, read_completions, read_held_out_completions
from mini_r1.tasks.answer_tags import fold_reason, prefill_of
from mini_r1.tasks.reflections import REFLECTION_PATTERN
from mini_r1.tasks.registry import is_right, task_of_row
from mini_r1.tasks.task import TaskProblem
from mini_r1.values import mapping, number

MAX_CHARACTERS = 20_000  # longest completion on the page; the longest useful ones (1,024 tokens) have about 4,000
KEPT_TAIL = 5_000  # characters kept at the end of a longer one: the answer is there
STORIES = 40  # first completions of each kind of story that are always kept
STYLES = ("neither", "wordy", "enumerating")
KINDS = ("training", "held out, sampled", "held out, greedy")
RIGHT, FORMAT, ORIGINAL, TRUNCATED, SAYS_WAIT = 1, 2, 4, 8, 16  # bits of a sample's flags
PROGRESS_EVERY = 20_000

_REFLECTION = re.compile(REFLECTION_PATTERN, re.IGNORECASE)


@dataclass
class Samples:
    """The completions of all runs on a page."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    tables: dict[str, dict[Any, tuple[int, Any]]] = field(default_factory=lambda: defaultdict(dict))
    """Distinct problems, reasons, reasonKinds and workings: index and value by a key; columns have the indices."""
    total: int = 0  # completions of the runs
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.columns["step"])

    def values(self, table: str) -> list[Any]:
        """Return the values of a table, by index."""
        return [value for _, value in self.tables[table].values()]

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        tables = {name: self.values(name) for name in ("problems", "reasons", "reasonKinds", "workings")}
        return {**{name: self.columns[name] for name in COLUMNS}, **tables, "styles": STYLES, "kinds": KINDS}

    def add(self, run: int, row: dict[str, Any], kind: int) -> None:
        """Add a row of a file of completions; a row that is none is counted."""
        problem, completion = _problem(row), row.get("completion")
        if problem is None or not isinstance(completion, str):
            self.unreadable += 1
            return
        verdicts = mapping(row.get("rewards"))
        reason, style, reward = text(row.get("reason")) or "no reason was logged", row.get("style"), row.get("reward")
        task = task_of_row(row)
        shown = task.explain(completion, problem, prefill_of(row))
        answer = None if shown.answer is None else text(shown.answer, 600)
        packed = [answer, shown.steps, shown.result, shown.chips]
        clipped = max(0, len(completion) - MAX_CHARACTERS)
        if clipped:
            completion = completion[: MAX_CHARACTERS - KEPT_TAIL] + "\n⋯\n" + completion[-KEPT_TAIL:]
        right = is_right(row) is True
        flags = (
            RIGHT * right
            | FORMAT * _true(verdicts.get("format"))
            | ORIGINAL * _original(row, right=right)
            | TRUNCATED * (row.get("truncated") is True)
            | SAYS_WAIT * _says_wait(row["completion"])
        )
        values = (
            run,
            row["step"],
            self._index("problems", (task.name, problem.key), text(task.heading(problem), 2_000)),
            kind,
            flags,
            self._index("reasons", reason, reason),
            self._index("reasonKinds", fold_reason(reason), fold_reason(reason)),
            *(_count(row.get(name)) if name in row else None for name in ("tokens", "tries", "reflections")),
            (STYLES.index(style) if style in STYLES else 0) if "style" in row else None,
            None if (known := number(reward)) is None else round(known, 3),
            completion,
            clipped,
            self._index("workings", (str(packed), task.name, problem.key), packed),
        )
        for name, value in zip(COLUMNS, values, strict=True):
            self.columns[name].append(value)

    def _index(self, table: str, key: Any, value: Any) -> int:
        entries = self.tables[table]
        return entries.setdefault(key, (len(entries), value))[0]


COLUMNS = (
    "run", "step", "problem", "kind", "flags", "reason", "folded", "tokens", "tries", "reflections", "style", "reward",
    "text", "clipped", "working",
)  # fmt: skip


@dataclass
class _Counted:
    """The completions of a run, counted in a first pass over its files."""

    run: RunData
    held_out: Counter[Any] = field(default_factory=Counter)  # kept answers by problem
    training: Counter[int] = field(default_factory=Counter)  # completions by step
    stories: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """By step, the positions of the completions that are always kept."""
    share: int = 0  # its part of the page

    @property
    def total(self) -> int:
        return self.held_out.total() + self.training.total()


def collect_samples(
    runs: Sequence[RunData], limit: int, on_progress: Callable[[int], None] = lambda count: None
) -> Samples:
    """Choose and pack at most `limit` completions, shared evenly; `on_progress` gets the number read so far."""
    samples = Samples()
    counted = []
    for run in runs:
        counted.append(_count_completions(run, samples.total, on_progress))
        samples.total += counted[-1].total
    left = limit
    # A longer run takes what a short one leaves.
    for done, each in enumerate(sorted(counted, key=lambda one: one.total)):
        each.share = min(each.total, left // (len(counted) - done))
        left -= each.share
    for index, each in enumerate(counted):
        _add_run(samples, index, each)
    return samples


def _count_completions(run: RunData, before: int, on_progress: Callable[[int], None]) -> _Counted:
    counted = _Counted(run)
    stories: Counter[str] = Counter()
    for seen, row in enumerate(read_completions(run.run), 1):
        step = row["step"]
        for story in _stories(row):
            stories[story] += 1
            if stories[story] <= STORIES:
                counted.stories[step].add(counted.training[step])
        counted.training[step] += 1
        if seen % PROGRESS_EVERY == 0:
            on_progress(before + seen)
    counted.held_out.update(key for key, _ in _held_out(run))
    return counted


def _add_run(samples: Samples, index: int, counted: _Counted) -> None:
    """Add the chosen completions of a run, in a second pass: its files may not fit into memory."""
    trained = counted.training.total()
    # The first problems whose answers fit: one problem is compared over all steps, or not at all.
    most = max(counted.share // 3, counted.share - trained)
    running = accumulate(counted.held_out.values())
    problems = {key for key, total in zip(counted.held_out, running, strict=True) if total <= most}
    taken = sum(counted.held_out[key] for key in problems)
    keep = _choose(counted.training, counted.stories, max(0, counted.share - taken))
    positions: Counter[int] = Counter()
    for row in read_completions(counted.run.run):
        step = row["step"]
        if positions[step] in keep.get(step, ()):
            samples.add(index, row, 0)
        positions[step] += 1
    for key, row in _held_out(counted.run):
        if key in problems:
            samples.add(index, row, 2 if row.get("kind") == "greedy" else 1)


def _stories(row: dict[str, Any]) -> Iterator[str]:
    """Yield the kinds of story that a completion is an example of."""
    verdicts, completion = row.get("rewards"), row.get("completion")
    if not isinstance(verdicts, dict) or not isinstance(completion, str):
        return
    right = is_right(row) is True
    found = {
        "right": right,
        "wait": right and _says_wait(completion),
        "reflects": right and _count(row.get("reflections")) > 0,
        "retries": right and _count(row.get("tries")) > 1,
        "format broken": right and not _true(verdicts.get("format")),
        "scorers disagree": right != _original(row, right=right),
    }
    yield from (story for story, holds in found.items() if holds)


def _says_wait(completion: str) -> bool:
    """Return whether the thought interrupts itself with "wait", as a reflection phrase: "I can't wait" is none."""
    thought = completion.split("</think>", 1)[0]
    if "wait" not in thought.lower():
        return False
    line = " ".join(thought.split())
    return any(hit.group().lower() == "wait" for hit in _REFLECTION.finditer(line))


def _choose(counts: Counter[int], stories: dict[int, set[int]], limit: int) -> dict[int, set[int]]:
    """Return the positions to keep of each step: the stories, and of the rest the same number in each step."""
    ranked = nsmallest(
        limit,
        (
            (position not in stories.get(step, ()), _spread(position), _spread(step), step, position)
            for step, count in counts.items()
            for position in range(count)
        ),
    )
    keep: dict[int, set[int]] = defaultdict(set)
    for *_, step, position in ranked:
        keep[step].add(position)
    return keep


def _spread(index: int) -> int:
    """Return the bits of an index in reverse: the first indices in this order are spread evenly over a range."""
    return int(f"{index:053b}"[::-1], 2)


def _held_out(run: RunData) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the answers to held-out problems that evaluations kept, each with its problem's key."""
    for row in read_held_out_completions(run.run):
        if (problem := _problem(row)) is not None:
            yield problem.key, row


def _original(row: dict[str, Any], *, right: bool) -> bool:
    """Return the verdict of the original's scorer; of a task without one, the task's own."""
    verdicts = mapping(row.get("rewards"))
    return _true(verdicts.get(f"{task_of_row(row).success}_original", right))


def _problem(row: dict[str, Any]) -> TaskProblem | None:
    try:
        return task_of_row(row).parse(row, "completion")  # type: ignore[no-any-return]
    except KitError:
        return None


def _true(value: object) -> bool:
    return bool(number(value)) or value is True


def _count(value: object) -> int:
    known = number(value)
    return int(known) if known is not None and 0 <= known < 2**31 else 0
