"""What is plotted: which curves belong together, what they are called, what a reader has to know of them.

Nothing is drawn here; `drawing` does that. A plot without data stays in the list and says why it is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mini_r1.report import original_curve
from mini_r1.run.reader import Evaluated, Points, RunData, drawable
from mini_r1.values import mapping

SERIES = ("a", "b", "c", "d", "e", "f")
"""Names of the colours (Okabe and Ito 2008, told apart by the colour-blind), for a run or for a curve of one run."""
LABEL = 24
"""Characters of a run's name in a legend: two of them stand side by side in a small picture."""
TOLD_APART = 4
"""Attempts of a run that get a colour each; of more, the gaps between their lines tell enough."""
PHASES = (
    ("time/rollout", "rollout"),
    ("time/update", "update"),
    ("time/reference", "reference"),
    ("time/score", "score"),
    ("time/sync", "weights to vLLM"),
    ("time/evaluate", "evaluate"),
    ("time/save", "save"),
)


@dataclass
class Curve:
    """One line of a plot."""

    label: str
    points: Points
    colour: str
    """One of SERIES, or `original`, or `ink`."""
    run: int | None = None
    """Which run it is of; None for what is no run's."""
    style: str = "line"
    """line, path (a line that is no mean of anything, so never smoothed), dotted (a level), marks (measured at few
    steps, with intervals), published (the original's)."""
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    """95 %, one for each point or none at all."""


@dataclass
class Plot:
    """One picture."""

    name: str
    title: str
    note: str
    """What a reader has to know; shown below the picture."""
    curves: list[Curve]
    percent: bool = False
    x: str = "optimizer steps"
    restarts: list[tuple[int, int]] = field(default_factory=list)
    """(run, step) at which a later attempt began."""
    beside: list[Curve] = field(default_factory=list)
    """Drawn in a small picture of its own on the right: another time scale."""
    stacked: bool = False
    price: float | None = None
    """Of what the left axis counts: the right one then tells the cost."""
    group: str = ""

    @property
    def empty(self) -> bool:
        """Whether no curve of a run has a point."""
        return not any(curve.points[0] for curve in self.curves if curve.run is not None)


def plots(runs: Sequence[RunData], price: float | None = None) -> list[Plot]:
    """Every plot of a report on these runs, the most telling one first.

    Args:
        runs: what was read of them.
        price: of one GPU for an hour; None: no cost is told.
    """
    one = len(runs) == 1
    names = labels([run.name for run in runs])
    made = [success(runs)]

    def add(group: str, name: str, title: str, note: str, figures: dict[str, str], *, percent: bool = False) -> None:
        curves = []
        for index, run in enumerate(runs):
            for order, (figure, label) in enumerate(figures.items()):
                points = run.points(figure)
                if not points[0] and len(figures) > 1:
                    continue
                colour = SERIES[(order if one else index) % len(SERIES)]
                curves.append(Curve(label if one else names[index], points, colour, index))
        made.append(Plot(name, title, note, curves, percent, group=group, restarts=_restarts(runs)))

    learns, answers, costs = "What it learns", "How it answers", "What it costs"
    add(
        learns, "reward", "Reward", "Weighted sum of the rewards, mean over the step's completions.",
        {"reward": "reward"},
    )  # fmt: skip
    add(
        learns, "format", "Format kept",
        "Share of completions with one thought, one answer block and nothing after it. Original: learned by step 50.",
        {"rewards/format": "format"}, percent=True,
    )  # fmt: skip
    add(
        learns, "kl", "KL to the start", "Distance of the policy from the model it began as, nats a token.",
        {"kl": "KL"},
    )  # fmt: skip
    add(
        learns, "entropy", "Entropy", "How undecided the policy is, nats a token. Near 0 it always says the same.",
        {"entropy": "entropy"},
    )  # fmt: skip
    add(
        learns, "loss", "Loss",
        "Not a measure of learning. The advantages of a group add up to 0, so the printed loss is beta × KL: it starts "
        "at 0 and rises as the policy moves, while its gradient is real all along.",
        {"loss": "loss"},
    )  # fmt: skip
    add(
        learns, "equal-groups", "Groups that teach nothing",
        "Share of groups whose completions all have the same reward: all right, or all wrong.",
        {"frac_groups_all_equal": "groups"}, percent=True,
    )  # fmt: skip
    add(
        answers, "tries", "Tries per answer", "Lines of the thought that work something out: how long it searches.",
        {"tries": "tries"},
    )  # fmt: skip
    add(
        answers, "length", "Completion length", "Tokens, mean over completions.", {"completion_length": "tokens"},
    )  # fmt: skip
    add(
        answers, "reflections", "Reflection phrases",
        "“Wait”, “let me check”, “alternatively”, … in a thought, mean over completions.",
        {"reflections": "phrases"},
    )  # fmt: skip
    if one:
        add(
            answers, "style", "Words or enumeration",
            "Share of thoughts that list attempts, and of those that reason in words; the rest do neither.",
            {"frac_enumerating": "enumerating", "frac_wordy": "wordy"}, percent=True,
        )  # fmt: skip
    else:  # both in one picture would be two lines of each colour
        add(
            answers,
            "enumerating",
            "Enumeration",
            "Share of thoughts that list attempts.",
            {"frac_enumerating": ""},
            percent=True,
        )
        add(answers, "wordy", "Words", "Share of thoughts that reason in words.", {"frac_wordy": ""}, percent=True)
    add(
        answers, "truncated", "Cut short", "Share of completions that reached the length limit without an end.",
        {"frac_truncated": "cut"}, percent=True,
    )  # fmt: skip
    _published(made)
    paid = [_gpu_hours(runs, price)] if any(a.gpus for run in runs for a in run.attempts) else []
    for plot in (_seconds(runs), _tokens(runs), *paid, _clock(runs)):
        plot.group = costs
        made.append(plot)
    return made


def labels(names: Sequence[str]) -> list[str]:
    """Names for a legend: long ones without their middle, numbered where that leaves two of them alike."""
    short = [_short(name, LABEL) for name in names]
    if len(set(short)) == len(short):
        return short
    return [f"{at}: {_short(name, LABEL - 3)}" for at, name in enumerate(names, 1)]


def _short(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: (room - 1) // 2]}…{name[-(room // 2) :]}"


def success(runs: Sequence[RunData]) -> Plot:
    """Held-out success with intervals, training success, the baselines, and the published curve."""
    one = len(runs) == 1
    names = labels([run.name for run in runs])
    curves: list[Curve] = []
    for index, run in enumerate(runs):
        own = "" if one else f"{names[index]}: "
        colour = SERIES[index % len(SERIES)]
        held = SERIES[2] if one else colour
        curves.append(Curve(f"{own}training", run.points("success"), colour, index))
        during = run.points("eval_success")
        if during[0]:
            counts = dict(zip(*run.points("eval_problems"), strict=True))
            limits = [wilson(v, counts.get(s, 0)) for s, v in zip(*during, strict=True)]
            label = f"{own}held out, during training"
            curves.append(Curve(label, during, SERIES[4] if one else colour, index, "marks", limits))
        for figure, limits_of, label in (("sampled", "ci95", "held out, sampled"), ("greedy", "greedy_ci95", "greedy")):
            measured = [e for e in main_series(run) if e.figure(figure) is not None]
            if measured and (one or figure == "sampled"):
                points = [float(e.step) for e in measured], [e.figure(figure) or 0.0 for e in measured]
                ends = [e.interval(limits_of) for e in measured]
                shade = held if figure == "sampled" else SERIES[1]
                name = label if figure == "sampled" else "held out, greedy"
                curves.append(Curve(own + name, points, shade, index, "marks", ends))
        if one:
            curves += _baselines(run)
    last = max((run.planned or run.step for run in runs), default=0)
    published = original_curve.published()
    original = Curve(
        "the original: training reward, T 0.9",
        ([float(s) for s, _ in published["success"]], [float(v) for _, v in published["success"]]),
        "original", None, "published",
    )  # fmt: skip
    note = (
        "Bars: 95 % intervals that respect problems over the same numbers. Training success is measured on the "
        f"problems it trains on. {published['name']}: {published['what']}."
    )
    plot = Plot("success", "Success", note, curves, True, restarts=_restarts(runs))
    if last >= 150:
        plot.curves.append(original)
    else:
        plot.beside = [original]
    return plot


def main_series(run: RunData) -> list[Evaluated]:
    """The evaluations that one line may join: on the same problems, covering most steps, of these the largest."""
    series: dict[str, list[Evaluated]] = {}
    for evaluated in run.evaluations:
        series.setdefault(evaluated.series, []).append(evaluated)
    best = max(series.values(), key=lambda found: (len({e.step for e in found}), found[0].problems), default=[])
    return sorted({e.step: e for e in best}.values(), key=lambda e: e.step)


def wilson(share: float, count: float) -> tuple[float, float] | None:
    """The 95 % interval of a share of so many independent draws (Wilson 1927); None where the count is not known."""
    if count < 1 or not 0 <= share <= 1:
        return None
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


SHOWN_BUDGETS = ("1", "4", "16")
"""Tries of the random solver that have a line of their own."""


def _baselines(run: RunData) -> list[Curve]:
    """What takes no learning: a random solver after some numbers of tries; the untrained model."""
    measured = main_series(run)
    if not measured:
        return []
    ends = [0.0, max(float(measured[-1].step), float(run.step))]
    found = mapping(measured[-1].values.get("baselines"))
    at_tries = mapping(mapping(found.get("random_solver")).get("success_at_tries"))
    untrained = mapping(found.get("untrained"))
    levels = {
        f"random solver, {tries} {'try' if tries == '1' else 'tries'}": at_tries.get(tries) for tries in SHOWN_BUDGETS
    }
    levels["untrained"] = untrained.get("sampled", untrained.get("greedy"))
    return [
        Curve(label, (ends, [level] * 2), "ink", None, "dotted")
        for label, value in levels.items()
        if (level := drawable(value)) is not None
    ]


def _published(made: list[Plot]) -> None:
    """The original's other figures, where the run is long enough for them to be on the same axis."""
    published = original_curve.published()
    for plot, figure in (("length", "completion_length"), ("kl", "kl")):
        found = next(p for p in made if p.name == plot)
        reach = max((c.points[0][-1] for c in found.curves if c.points[0]), default=0)
        if reach >= 150:
            points = [float(s) for s, _ in published[figure]], [float(v) for _, v in published[figure]]
            found.curves.append(Curve("the original", points, "original", None, "published"))


def _seconds(runs: Sequence[RunData]) -> Plot:
    if len(runs) > 1:
        curves = []
        names = labels([run.name for run in runs])
        for index, run in enumerate(runs):
            steps = [row["step"] for row in run.rows if "loss" in row]
            totals = []
            by_phase = {figure: dict(zip(*run.points(figure), strict=True)) for figure, _ in PHASES[:5]}
            for step in steps:
                totals.append(sum(phase.get(step, 0.0) for phase in by_phase.values()))
            curves.append(Curve(names[index], ([float(s) for s in steps], totals), SERIES[index % len(SERIES)], index))
        return Plot("seconds", "Seconds a step", "Without evaluation and saving.", curves)
    curves = []
    for order, (figure, label) in enumerate(PHASES[:5]):
        points = runs[0].points(figure)
        if points[0]:
            curves.append(Curve(label, points, SERIES[order % len(SERIES)], 0))
    note = "Of one optimizer step, by phase, on top of each other."
    seldom = [(label, runs[0].points(figure)[1]) for figure, label in PHASES[5:]]
    extra = [f"{label} {_mean(values):.1f} s each time" for label, values in seldom if values]
    return Plot(
        "seconds", "Seconds a step", " ".join([note, *([f"Besides: {', '.join(extra)}."] if extra else [])]), curves,
        restarts=_restarts(runs), stacked=True,
    )  # fmt: skip


def _tokens(runs: Sequence[RunData]) -> Plot:
    names = labels([run.name for run in runs])
    curves = [
        Curve("tokens" if len(runs) == 1 else names[i], run.points("tokens_per_second"), SERIES[i % len(SERIES)], i)
        for i, run in enumerate(runs)
    ]
    note = "Completion tokens of all workers by the seconds of the rollout."
    return Plot("tokens-per-second", "Tokens a second", note, curves, restarts=_restarts(runs))


def _gpu_hours(runs: Sequence[RunData], price: float | None) -> Plot:
    """GPU-hours paid for when a step was done: of every GPU of every start so far, steps done again included."""
    names = labels([run.name for run in runs])
    curves = []
    for index, run in enumerate(runs):
        paid = 0.0
        points: Points = ([], [])
        for attempt in run.attempts:
            times, steps = attempt.times
            if attempt.gpus and attempt.seconds is not None:
                begin = attempt.started if attempt.started is not None else times[0]
                points[0].extend(steps)
                points[1].extend(paid + max(0.0, at - begin) * attempt.gpus / 3600 for at in times)
                paid += attempt.seconds * attempt.gpus / 3600
        curves.append(Curve("GPU-hours" if len(runs) == 1 else names[index], points, SERIES[index], index, "path"))
    said = "on the right what they cost at this price" if price else "--price-per-gpu-hour tells what they cost"
    note = f"Of every GPU of every start, steps done again included; {said}."
    title = f"GPU-hours, and cost at {price:g} each" if price else "GPU-hours"
    return Plot("gpu-hours", title, note, curves, price=price or None, restarts=_restarts(runs))


def _clock(runs: Sequence[RunData]) -> Plot:
    """Steps over time: every attempt a line of its own; gaps are waiting, falling back is work done again."""
    curves = []
    names = labels([run.name for run in runs])
    unit, per = _unit(runs)
    for index, run in enumerate(runs):
        begin = next((a.started or (a.times[0][0] if a.times[0] else None) for a in run.attempts), None)
        for attempt in run.attempts:
            times, steps = attempt.times
            if not times or begin is None:
                continue
            few = len(runs) == 1 and len(run.attempts) <= TOLD_APART
            label = f"attempt {attempt.number}" if few else names[index] if len(runs) > 1 else ""
            order = attempt.number - 1 if few else index
            first = attempt.started if attempt.started is not None else times[0]
            after = float((attempt.first_step or 1) - 1)
            points = [(at - begin) / per for at in [first, *times]], [after, *steps]
            curves.append(Curve(label, points, SERIES[order % len(SERIES)], index, "path"))
    note = "Every start of the program is a line of its own; where a line begins lower, steps were done again."
    return Plot("clock", "Steps over time", note, curves, x=f"{unit} since the first start")


def _unit(runs: Sequence[RunData]) -> tuple[str, float]:
    spans = [a.times[0][-1] - (run.attempts[0].begin or 0.0) for run in runs for a in run.attempts if a.times[0]]
    longest = max(spans, default=0.0)
    return ("hours", 3600.0) if longest > 5_400 else ("minutes", 60.0) if longest > 90 else ("seconds", 1.0)


def _restarts(runs: Sequence[RunData]) -> list[tuple[int, int]]:
    return [(index, step) for index, run in enumerate(runs) for step in run.restarts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
