"""Which curves a report has, how they are grouped, and their captions; `drawing` draws them.

A plot without data stays in the list, and the page says that nothing was logged for it; a figure of the original's task
is left out for other tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from mini_r1.report.original_curve import PUBLISHED, has_original_task
from mini_r1.run.reader import Evaluated, Points, RunData
from mini_r1.values import mapping, number

SERIES = ("a", "b", "c", "d", "e", "f")  # colours (Okabe and Ito 2008, for colour-blind readers) of runs or curves
LABEL = 24  # characters of a run's name in a legend: two of them fit next to each other in a small picture
COLOURED_ATTEMPTS = 4  # most attempts of a run that get a colour each
LONG_RUN = 150  # steps from which a run is drawn on the same axis as the original
SHOWN_BUDGETS = ("1", "4", "16")  # tries of the random solver that have a separate line
PHASES = {
    "time/rollout": "rollout",
    "time/update": "update",
    "time/reference": "reference",
    "time/score": "score",
    "time/sync": "weights to vLLM",
}
WAIT = "time/wait"  # logged with rollout_ahead, where a rollout takes place during the other phases
RARE_PHASES = {"time/evaluate": "evaluate", "time/save": "save"}
GROUPS = LEARNS, ANSWERS, COSTS = "What it learns", "How it answers", "What it costs"

# group, name, figure, curve, whether it is a share, title, caption
FIGURES = (
    (LEARNS, "reward", "reward", "reward", False, "Reward",
     "Weighted sum of the rewards, mean over the completions of a step."),
    (LEARNS, "format", "rewards/format", "format", True, "Format",
     "Share of completions with one thought, one answer block and nothing after it. The original learned it by step "
     "50."),
    (LEARNS, "kl", "kl", "KL", False, "KL from the start",
     "Divergence of the policy from the model it started as, in nats per token."),
    (LEARNS, "entropy", "entropy", "entropy", False, "Entropy",
     "Of the policy, in nats per token. Near 0 it always writes the same."),
    (LEARNS, "loss", "loss", "loss", False, "Loss",
     "Not a measure of learning. The advantages of a group add up to 0, so the printed loss is beta × KL: it starts at "
     "0 and rises as the policy changes. Its gradient is not 0."),
    (LEARNS, "grad-norm", "grad_norm", "norm", False, "Gradient norm",
     "Before clipping to max_grad_norm. Peaks come before a policy that breaks."),
    (LEARNS, "learning-rate", "learning_rate", "rate", False, "Learning rate", "Of the step just done."),
    (LEARNS, "equal-groups", "frac_groups_all_equal", "groups", True, "Groups without a signal",
     "Share of groups whose completions all have the same reward: all right, or all wrong."),
    (ANSWERS, "tries", "tries", "tries", False, "Tries per answer",
     "Candidate calculations in a thought: how long it searches."),
    (ANSWERS, "length", "completion_length", "tokens", False, "Completion length", "Tokens, mean over completions."),
    (ANSWERS, "reflections", "reflections", "phrases", False, "Reflection phrases",
     "“Wait”, “let me check”, “alternatively”, … in a thought, mean over completions."),
    (ANSWERS, "enumerating", "frac_enumerating", "enumerating", True, "Enumerating thoughts",
     "Share of thoughts that list candidate calculations."),
    (ANSWERS, "wordy", "frac_wordy", "wordy", True, "Wordy thoughts", "Share of thoughts that reason in sentences."),
    (ANSWERS, "truncated", "frac_truncated", "truncated", True, "Truncated completions",
     "Share of completions that reached the maximum length before their end."),
)  # fmt: skip

ORIGINAL_TASK_FIGURES = ("tries", "frac_enumerating", "frac_wordy")
"""Figures that only completions of the original's task have."""


@dataclass
class Curve:
    """One line of a plot."""

    label: str
    points: Points
    colour: str  # one of SERIES, `original`, or `ink`
    run: int | None = None  # index of its run; None for a line that belongs to no run
    style: str = "line"
    """line, path (never smoothed), dotted (a level), marks (few steps, with intervals), published (the original's)."""
    intervals: list[tuple[float, float] | None] = field(default_factory=list)  # 95 %, one for each point of `marks`


@dataclass
class Plot:
    """One picture and its caption."""

    name: str
    title: str
    note: str
    curves: list[Curve]
    percent: bool = False
    x: str = "optimizer steps"
    restarts: list[int] = field(default_factory=list)  # first steps of later attempts
    side: list[Curve] = field(default_factory=list)  # drawn in a small picture on the right, with its own time scale
    stacked: bool = False
    price: float | None = None  # price of one unit of the left axis: the right axis then shows the cost
    group: str = COSTS
    svgs: list[str] = field(default_factory=list)  # `build` draws it: for a wide page, and for a phone if that differs

    @property
    def empty(self) -> bool:
        """Whether no curve of a run has a point."""
        return not any(curve.points[0] for curve in self.curves if curve.run is not None)


def make_plots(runs: Sequence[RunData], price: float | None = None) -> list[Plot]:
    """Return every plot of a report on these runs, success first; `price` is that of a GPU-hour."""
    with_original = any(map(has_original_task, runs))
    made = [_success(runs, with_original=with_original)]
    for group, name, figure, label, percent, title, note in FIGURES:
        if figure in ORIGINAL_TASK_FIGURES and not with_original:
            continue
        curves = _curve_per_run(runs, label, [run.points(figure) for run in runs])
        plot = Plot(name, title, note, curves, percent, group=group)
        long = max((curve.points[0][-1] for curve in curves if curve.points[0]), default=0) >= LONG_RUN
        if with_original and figure in PUBLISHED and long:
            plot.curves.append(_original(figure, "the original"))
        made.append(plot)
    tokens = _curve_per_run(runs, "tokens", [run.points("tokens_per_second") for run in runs])
    made += [
        _seconds(runs),
        Plot("tokens-per-second", "Tokens per second", "Completion tokens of all workers, during the rollout.", tokens),
    ]
    if any(attempt.gpus for run in runs for attempt in run.attempts):
        made.append(_gpu_hours(runs, price))
    made.append(_clock(runs))
    for plot in made:
        if plot.x.startswith("optimizer"):
            plot.restarts = [a.first_step for run in runs for a in run.attempts[1:] if a.first_step is not None]
    return made


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return names for a legend: long ones lose their middle, and are numbered if two of them are the same then."""
    short = [_cut_middle(name, LABEL) for name in names]
    if len(set(short)) == len(short):
        return short
    return [f"{at}: {_cut_middle(name, LABEL - 3)}" for at, name in enumerate(names, 1)]


def _cut_middle(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"


def _curve_per_run(runs: Sequence[RunData], label: str, points: Sequence[Points], style: str = "line") -> list[Curve]:
    """Return a curve for each run, with its name as label; with `label` if there is one run."""
    names = [label] if len(runs) == 1 else shorten_names([run.name for run in runs])
    return [Curve(names[i], each, SERIES[i], i, style) for i, each in enumerate(points)]


def _original(figure: str, label: str) -> Curve:
    steps, values = zip(*PUBLISHED[figure], strict=True)
    return Curve(label, ([*map(float, steps)], [*map(float, values)]), "original", None, "published")


def _success(runs: Sequence[RunData], *, with_original: bool) -> Plot:
    """Return held-out success with intervals, training success and the baselines, and the published curve if asked."""
    one = len(runs) == 1
    curves: list[Curve] = []
    for run, name, colour in zip(runs, shorten_names([run.name for run in runs]), SERIES, strict=False):
        prefix, index = "" if one else f"{name}: ", SERIES.index(colour)
        curves.append(Curve(f"{prefix}training", run.points("success"), colour, index))
        during = run.points("eval_success")
        if during[0]:
            counts = dict(zip(*run.points("eval_problems"), strict=True))
            limits = [wilson(share, counts.get(step, 0)) for step, share in zip(*during, strict=True)]
            label = f"{prefix}held out, during training"
            curves.append(Curve(label, during, SERIES[4] if one else colour, index, "marks", limits))
        for figure, ends, single in (("sampled", "ci95", SERIES[2]), ("greedy", "greedy_ci95", SERIES[1])):
            known = [(e, value) for e in main_series(run) if (value := e.figure(figure)) is not None]
            if known and (one or figure == "sampled"):
                points = [float(e.step) for e, _ in known], [value for _, value in known]
                limits = [e.interval(ends) for e, _ in known]
                shade = single if one else colour
                curves.append(Curve(f"{prefix}held out, {figure}", points, shade, index, "marks", limits))
        if one:
            curves += _baselines(run)
    note = "Training success is measured on the problems it trains on."
    if not with_original:
        return Plot("success", "Success", f"Bars: 95 % intervals. {note}", curves, percent=True, group="success")
    note = (
        f"Bars: 95 % intervals; problems with the same numbers count as one draw. {note} "
        f"The original: {PUBLISHED['what']}."
    )
    plot = Plot("success", "Success", note, curves, percent=True, group="success")
    long = max((run.planned or run.step for run in runs), default=0) >= LONG_RUN
    (plot.curves if long else plot.side).append(_original("success", "the original: training reward, T 0.9"))
    return plot


def main_series(run: RunData) -> list[Evaluated]:
    """Return the evaluations that one line may join: on the same problems, with the most steps, then problems."""
    series: dict[str, dict[int, Evaluated]] = {}
    for evaluated in run.evaluations:
        series.setdefault(evaluated.series, {})[evaluated.step] = evaluated
    best = max(series.values(), key=lambda found: (len(found), next(iter(found.values())).problems), default={})
    return [best[step] for step in sorted(best)]


def wilson(share: float, count: float) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of `count` independent draws (Wilson 1927); None without a count."""
    if count < 1 or not 0 <= share <= 1:
        return None
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _baselines(run: RunData) -> list[Curve]:
    """Return levels that take no learning: a random solver after some numbers of tries, the untrained model."""
    measured = main_series(run)
    if not measured:
        return []
    ends = [0.0, max(float(measured[-1].step), float(run.step))]
    found = mapping(measured[-1].values.get("baselines"))
    at_tries = mapping(mapping(found.get("random_solver")).get("success_at_tries"))
    untrained = mapping(found.get("untrained"))
    levels = {f"random solver, {n} {'try' if n == '1' else 'tries'}": at_tries.get(n) for n in SHOWN_BUDGETS}
    levels["untrained"] = untrained.get("sampled", untrained.get("greedy"))
    return [
        Curve(label, (ends, [level] * 2), "ink", None, "dotted")
        for label, value in levels.items()
        if (level := number(value)) is not None
    ]


def _seconds(runs: Sequence[RunData]) -> Plot:
    if len(runs) > 1:
        curves = _curve_per_run(runs, "", [*map(_step_seconds, runs)])
        return Plot("seconds", "Seconds per step", "Without evaluation and saving.", curves)
    run = runs[0]
    curves = [
        Curve(label, points, colour, 0)
        for (figure, label), colour in zip(_phases(run).items(), SERIES, strict=False)
        if (points := run.points(figure))[0]
    ]
    rare = [f"{label} {fmean(run.points(f)[1]):.1f} s" for f, label in RARE_PHASES.items() if run.points(f)[0]]
    ahead = fmean(run.points("time/rollout")[1]) if run.points(WAIT)[0] and run.points("time/rollout")[0] else None
    meanwhile = "" if ahead is None else f" Meanwhile vLLM samples the next step, {ahead:.1f} s on average."
    note = f"Of one optimizer step, by phase.{meanwhile}" + (f" Not in every step: {', '.join(rare)}." if rare else "")
    return Plot("seconds", "Seconds per step", note, curves, stacked=True)


def _phases(run: RunData) -> dict[str, str]:
    """Return the phases that add up to a step: of a rollout ahead only the wait for it does."""
    if not run.points(WAIT)[0]:
        return PHASES
    return {WAIT: "wait for the rollout", **{figure: label for figure, label in PHASES.items() if label != "rollout"}}


def _step_seconds(run: RunData) -> Points:
    phases = [dict(zip(*run.points(figure), strict=True)) for figure in _phases(run)]
    steps = [float(row["step"]) for row in run.rows if "loss" in row]
    return steps, [sum(phase.get(step, 0.0) for phase in phases) for step in steps]


def _gpu_hours(runs: Sequence[RunData], price: float | None) -> Plot:
    right = "right axis: the cost" if price else "--price-per-gpu-hour adds the cost"
    note = f"Of every GPU of every attempt, repeated steps included; {right}."
    curves = _curve_per_run(runs, "GPU-hours", [*map(_paid_hours, runs)], "path")
    title = f"GPU-hours, and cost at {price:g} each" if price else "GPU-hours"
    return Plot("gpu-hours", title, note, curves, price=price or None)


def _paid_hours(run: RunData) -> Points:
    before = 0.0
    points: Points = ([], [])
    for attempt in run.attempts:
        times, steps = attempt.times
        if attempt.gpus and attempt.begin is not None and attempt.seconds is not None:
            points[0].extend(steps)
            points[1].extend(before + max(0.0, at - attempt.begin) * attempt.gpus / 3600 for at in times)
            before += attempt.seconds * attempt.gpus / 3600
    return points


def _clock(runs: Sequence[RunData]) -> Plot:
    """Return steps over time, with a line for each attempt: gaps are waiting, lower beginnings are repeated steps."""
    begins = [next((a.begin for a in run.attempts if a.begin is not None), 0.0) for run in runs]
    ends = [a.times[0][-1] - begin for run, begin in zip(runs, begins, strict=True) for a in run.attempts if a.times[0]]
    longest = max(ends, default=0.0)
    unit, per = ("hours", 3600) if longest > 5_400 else ("minutes", 60) if longest > 90 else ("seconds", 1)
    curves = []
    for index, each in enumerate(_curve_per_run(runs, "", [([], [])] * len(runs), "path")):
        attempts = runs[index].attempts
        coloured = len(runs) == 1 and len(attempts) <= COLOURED_ATTEMPTS
        for colour, attempt in zip(SERIES if coloured else each.colour * len(attempts), attempts, strict=False):
            times, steps = attempt.times
            if times:
                points = [(at - begins[index]) / per for at in (attempt.begin or 0.0, *times)]
                done = [float((attempt.first_step or 1) - 1), *steps]
                label = f"attempt {attempt.number}" if coloured else each.label
                curves.append(replace(each, label=label, points=(points, done), colour=colour))
    note = "One line per attempt; where a line begins lower than the last one ended, steps were repeated."
    return Plot("clock", "Steps over time", note, curves, x=f"{unit} since the first start")
