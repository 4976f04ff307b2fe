"""The completions of the samples browser: which of them go on the page, and how they are packed.

A page holds at most so many. Of more, those that tell a story are kept (the first right ones, the first that said
"wait" and ended right, ...), and the rest is thinned evenly over the steps. Columns instead of objects: 20,000 of them
are half the size and are read in a fraction of the time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mini_r1.run.reader import RunData, is_step, read_completions, read_held_out_completions, text
from mini_r1.tasks.countdown import task
from mini_r1.values import mapping, number

MAX_CHARACTERS = 20_000
"""Of a completion on the page; the longest sensible one (1,024 tokens) has some 4,000."""
KEPT_TAIL = 5_000
"""Of a longer one, so many characters of its end are kept: the answer is there."""
STORIES = 40
"""Of each kind of story the first so many completions are always kept."""
STYLES = ("neither", "wordy", "enumerating")
KINDS = ("training", "held out, sampled", "held out, greedy")
RIGHT, FORMAT, ORIGINAL, CUT, REFLECTS_WAIT = 1, 2, 4, 8, 16
"""Bits of a sample's flags."""

_REFLECTION = re.compile(task.REFLECTION_PATTERN, re.IGNORECASE)

OnProgress = Callable[[int], None]


class _Table:
    """Distinct values and their places."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, key: Any, value: Any = None) -> int:
        """Where a value stands; put there when it is new."""
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(key if value is None else value)
        return self._places[key]


@dataclass
class Samples:
    """What the page gets of all runs' completions."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    problems: list[Any] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    kinds_of_reason: list[str] = field(default_factory=list)
    workings: list[Any] = field(default_factory=list)
    total: int = 0
    """Completions that the runs hold."""
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.columns.get("step", ()))

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {
            **self.columns,
            "problems": self.problems,
            "reasons": self.reasons,
            "reasonKinds": self.kinds_of_reason,
            "workings": self.workings,
            "styles": STYLES,
            "kinds": KINDS,
        }


def collect(runs: Sequence[RunData], limit: int, on_progress: OnProgress | None = None) -> Samples:
    """Choose and pack completions of all runs.

    Args:
        runs: as `reading.read_run` gives them.
        limit: at most so many, shared evenly among the runs.
        on_progress: called with the completions read so far.
    """
    packer = _Packer(on_progress)
    known = [_Found(run, *packer.count(run)) for run in runs]
    left = limit
    for done, found in enumerate(sorted(known, key=lambda f: f.total)):  # what a short run leaves, a longer one takes
        found.room = min(found.total, left // (len(known) - done))
        left -= found.room
    for index, found in enumerate(known):
        packer.add(index, found)
    return packer.samples


@dataclass
class _Found:
    """What the first pass over a run's completions tells."""

    run: RunData
    held_out: Counter[Any]
    """Kept answers to each held-out problem."""
    counts: Counter[int]
    """Completions of each step."""
    stories: dict[int, set[int]]
    """Of each step, the places of those that are always kept."""
    room: int = 0

    @property
    def total(self) -> int:
        return self.held_out.total() + sum(self.counts.values())


class _Packer:
    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._seen = 0
        self._problems, self._reasons, self._kinds, self._workings = _Table(), _Table(), _Table(), _Table()
        names = "run step problem kind flags reason folded tokens tries reflections style reward text clipped working"
        self.samples = Samples({name: [] for name in names.split()})

    def add(self, index: int, found: _Found) -> None:
        """Add those of one run: the second pass over its files, so that never all of them are in memory."""
        held_out = _whole_problems(found.held_out, max(found.room // 3, found.room - sum(found.counts.values())))
        taken = sum(found.held_out[key] for key in held_out)
        keep = _chosen(found.counts, found.stories, max(0, found.room - taken))
        position: Counter[int] = Counter()
        for row in read_completions(found.run.run):
            step = row["step"]
            place = position[step]
            position[step] += 1
            if place in keep.get(step, ()):
                self._pack(index, row, 0)
        for key, row in _held_out(found.run):
            if key in held_out:
                self._pack(index, row, 2 if row.get("kind") == "greedy" else 1)
        samples = self.samples
        samples.total += found.total
        samples.problems, samples.reasons = self._problems.values, self._reasons.values
        samples.kinds_of_reason, samples.workings = self._kinds.values, self._workings.values

    def count(self, run: RunData) -> tuple[Counter[Any], Counter[int], dict[int, set[int]]]:
        """The first pass: answers to each held-out problem; completions of each step, and which are always kept."""
        counts: Counter[int] = Counter()
        stories: dict[int, set[int]] = {}
        told: Counter[str] = Counter()
        for row in read_completions(run.run):
            step = row["step"]
            for story in _stories(row):
                if told[story] < STORIES:
                    told[story] += 1
                    stories.setdefault(step, set()).add(counts[step])
            counts[step] += 1
            self._saw_one()
        held_out: Counter[Any] = Counter()
        for key, _ in _held_out(run):
            held_out[key] += 1
            self._saw_one()
        return held_out, counts, stories

    def _saw_one(self) -> None:
        self._seen += 1
        if self._on_progress is not None and self._seen % 20_000 == 0:
            self._on_progress(self._seen)

    def _pack(self, run: int, row: dict[str, Any], kind: int) -> None:
        problem, completion = _problem(row), row.get("completion")
        if problem is None or not isinstance(completion, str) or not is_step(row.get("step")):
            self.samples.unreadable += 1
            return
        verdicts = mapping(row.get("rewards"))
        reason = text(row.get("reason")) or "no reason was logged"
        style = row.get("style")
        flags = RIGHT * _true(verdicts.get("equation")) | FORMAT * _true(verdicts.get("format"))
        flags |= ORIGINAL * _true(verdicts.get("equation_original")) | CUT * (row.get("truncated") is True)
        flags |= REFLECTS_WAIT * _says_wait(completion)
        working = task.work_out(completion, problem.nums)
        packed: list[Any] = [
            text(working.answer, 600) if working.answer is not None else None,
            working.steps,
            working.value,
        ]
        packed += [working.missing, [str(extra) for extra in working.extra]]
        clipped = len(completion) - MAX_CHARACTERS
        if clipped > 0:
            completion = completion[: MAX_CHARACTERS - KEPT_TAIL] + "\n⋯\n" + completion[-KEPT_TAIL:]
        values = {
            "run": run,
            "step": row["step"],
            "problem": self._problems.place(problem.key, [list(problem.nums), problem.target]),
            "kind": kind,
            "flags": flags,
            "reason": self._reasons.place(reason),
            "folded": self._kinds.place(task.fold_reason(reason)),
            "tokens": _whole(row.get("tokens")),
            "tries": _whole(row.get("tries")),
            "reflections": _whole(row.get("reflections")),
            "style": STYLES.index(style) if style in STYLES else 0,
            "reward": None if (reward := number(row.get("reward"))) is None else round(reward, 3),
            "text": completion,
            "clipped": max(0, clipped),
            "working": self._workings.place((str(packed), problem.key), packed),
        }
        for name, value in values.items():
            self.samples.columns[name].append(value)


def _stories(row: dict[str, Any]) -> Iterator[str]:
    """What a completion is an example of."""
    verdicts = row.get("rewards")
    if not isinstance(verdicts, dict):
        return
    right = _true(verdicts.get("equation"))
    completion = row.get("completion")
    if not isinstance(completion, str):
        return
    if right:
        yield "right"
        if _says_wait(completion):
            yield "wait"
        if _whole(row.get("reflections")):
            yield "reflects"
        if _whole(row.get("tries")) > 1:
            yield "tries again"
        if not _true(verdicts.get("format")):
            yield "format broken"
    if right != _true(verdicts.get("equation_original")):
        yield "scorers disagree"


def _says_wait(completion: str) -> bool:
    """Whether the thought stops itself with "wait": a reflection phrase, so "I can't wait" is none."""
    thought = completion.split("</think>", 1)[0]
    if "wait" not in thought.lower():
        return False
    line = " ".join(thought.split())
    return any(hit.group().lower() == "wait" for hit in _REFLECTION.finditer(line))


def _chosen(counts: Counter[int], stories: dict[int, set[int]], limit: int) -> dict[int, set[int]]:
    """Places to keep of each step: the stories, and the rest evenly over the steps."""
    if sum(counts.values()) <= limit:
        return {step: set(range(count)) for step, count in counts.items()}
    keep: dict[int, set[int]] = {}
    left = limit
    for step in sorted(stories):
        keep[step] = set(sorted(stories[step])[:left])
        left -= len(keep[step])
    steps = sorted(counts)
    if left < len(steps):  # not one for each: every so many steps
        steps = [steps[i * len(steps) // left] for i in range(left)] if left else []
    steps.sort(key=lambda step: counts[step] - len(keep.get(step, ())))  # what a small step leaves, others take
    for done, step in enumerate(steps):
        rest = sorted(set(range(counts[step])) - keep.setdefault(step, set()))
        wanted = min(left // (len(steps) - done), len(rest))
        keep[step] |= {rest[i * len(rest) // wanted] for i in range(wanted)}
        left -= wanted
    return keep


def _held_out(run: RunData) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The answers to held-out problems that evaluations kept, each with its problem's key."""
    for row in read_held_out_completions(run.run):
        problem = _problem(row)
        if problem is not None and is_step(row["step"]):
            yield problem.key, row


def _whole_problems(counts: Counter[Any], limit: int) -> set[Any]:
    """The first so many problems, each with all its answers: one problem's answers over the steps are the point."""
    kept: set[Any] = set()
    for key, count in counts.items():
        limit -= count
        if limit < 0:
            break
        kept.add(key)
    return kept


def _problem(row: dict[str, Any]) -> task.Problem | None:
    nums, target = row.get("nums"), row.get("target")
    if not isinstance(nums, list) or not 1 <= len(nums) <= 8 or type(target) is not int or abs(target) > 10**9:
        return None
    if not all(type(n) is int and 1 <= n <= 10**6 for n in nums):
        return None
    return task.Problem(tuple(nums), target)


def _true(value: object) -> bool:
    return bool(number(value)) or value is True


def _whole(value: object) -> int:
    known = number(value)
    return int(known) if known is not None and 0 <= known < 2**31 else 0
