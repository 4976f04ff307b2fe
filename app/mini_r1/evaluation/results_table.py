"""Tables of an evaluation: one snapshot in full, and one row for each of a run's snapshots."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mini_r1.console import printable
from mini_r1.evaluation.evaluate_run import Series
from mini_r1.tasks.registry import find_task

SHOWN_REASONS = 8
"""Kinds of failure in the table; the JSON has all of them."""
WIDE = 74
"""Columns of a terminal that all figures of a series need."""
SOLVERS = {"random_solver": "random solver", "signed_sums": "signed sums"}
OVER_SOLVER = {name: f"O/E\n{words.split()[0]}" for name, words in SOLVERS.items()}
"""Headings of a series, by solver."""
ONLY_WIDE = frozenset({*OVER_SOLVER.values(), "format"})
"""Columns left out on a narrower terminal."""
WHAT_OVER_IS = (
    "O/E: right answers divided by those expected if each try of the model had been one of the solver's; above 1 the "
    "model searches better"
)


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print one result: overall, by strata, baselines, why answers failed."""
    provenance = result["provenance"]
    step = "" if provenance["step"] is None else f", step {provenance['step']}"
    table = Table(title=_text(f"{provenance['source']}{step}: {provenance['selection']}"), title_justify="left")
    table.add_column("")
    for heading in ("n", "greedy", "95 %", f"sampled (T {result['temperature']:g})", "95 %"):
        table.add_column(heading, justify="right")
    table.add_row(*_row("all", result, result["problems"]))
    task = find_task(provenance["task"])
    for by, groups in result.items():
        if by.startswith("by_"):
            table.add_section()
            for key, figures in groups.items():
                name = task.describe_stratum(by.removeprefix("by_"), key)
                table.add_row(*_row(name, figures, figures["problems"]))
    table.add_section()
    untrained = result["baselines"].get("untrained")
    if untrained is not None:
        table.add_row(*_row("untrained model", untrained, result["problems"]))
    console.print(table)
    _print_search(result, console)

    more = Table(show_header=False)
    for k, figures in result["pass_at_k"].items():
        if k != "1":
            limits = f"  ({_limits(figures['ci95'])})" if figures["ci95"] else ""
            more.add_row(f"pass@{k}", f"{figures['value']:.1%}{limits}")
    more.add_row("format kept", f"{result['format']:.1%}")
    if "tries" in result:
        more.add_row("tries per answer", f"{result['tries']:.1f}")
    more.add_row("tokens per answer", f"{result['completion_tokens']:.0f}, {result['truncated']:.1%} cut short")
    more.add_row("time", f"{result['seconds']:.0f} s on {provenance['device']}, {provenance['engine']}")
    console.print(more)

    if result["failures"]:
        sampled = result["problems"] * result["samples"]
        why = Table("why a sampled answer is wrong", "answers", "share of all", title_justify="left")
        for reason, count in list(result["failures"].items())[:SHOWN_REASONS]:
            why.add_row(_text(reason), f"{count:,}", f"{count / sampled:.1%}")
        console.print(why)
    if provenance["written_to"]:
        console.print(_text(f"written to {provenance['written_to']}"), soft_wrap=True)


def _print_search(result: dict[str, Any], console: Console) -> None:
    """Print what search alone achieves, and what the model's tries are worth compared with it."""
    solvers = {name: result["baselines"][name] for name in SOLVERS if name in result["baselines"]}
    if not solvers:
        if find_task(result["provenance"]["task"]).solvers(None):
            console.print("search alone: not counted, these problems have too many results")
        return
    table = Table(
        "search alone, after", *(SOLVERS[name] for name in solvers), title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for tries in next(iter(solvers.values()))["success_at_tries"]:
        shares = (f"{figures['success_at_tries'][tries]:.1%}" for figures in solvers.values())
        table.add_row(f"{tries} {'try' if tries == '1' else 'tries'}", *shares)
    table.add_row("this model's O/E", *map(over, solvers.values()))
    console.print(table)
    console.print(WHAT_OVER_IS)


def over(figures: dict[str, Any]) -> str:
    """Return a solver's O/E with its interval: `0.87 (0.82-0.93)`; `-` when the solver is expected to hit nothing."""
    ratio, limits = figures["observed_over_expected"], figures["observed_over_expected_ci95"]
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" + (f" ({limits[0]:.2f}-{limits[1]:.2f})" if limits else "")


def print_series(series: Series, console: Console) -> None:
    """Print a run's snapshots, one in a row, then the newest in full."""
    newest = series.evaluations[-1]
    most = max(newest["pass_at_k"], key=int)
    title = f"{series.run}: {newest['provenance']['selection']}, {newest['samples']} samples each"
    table = Table(title=_text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    wide = console.width >= WIDE
    for heading in _series_row(newest, most):
        if wide or heading not in ONLY_WIDE:
            table.add_column(heading, justify="right", no_wrap=True)
    for result in series.evaluations:
        row = _series_row(result, most)
        table.add_row(*(cell for heading, cell in row.items() if wide or heading not in ONLY_WIDE))
    console.print(table)
    if series.untrained is not None:
        console.print(_text(f"untrained model: not measured: {series.untrained}"))
    for step, error in series.errors.items():
        console.print(_text(f"step {step}: not measured: {error}"))
    print_table(newest, console)


def _series_row(result: dict[str, Any], most: str) -> dict[str, str]:
    """Return cells by their headings."""
    step, solvers = result["provenance"]["step"], result["baselines"]
    ratios = {heading: solvers.get(name, {}).get("observed_over_expected") for name, heading in OVER_SOLVER.items()}
    return {
        "step": str(step) if step else "untrained",
        "greedy": f"{result['greedy']:.1%}",
        "sampled": f"{result['sampled']:.1%}",
        "95 %": f"{result['ci95'][0] * 100:.0f}-{result['ci95'][1]:.0%}" if result["ci95"] else "",
        f"pass@{most}": f"{result['pass_at_k'][most]['value']:.1%}",
        **{heading: "-" if ratio is None else f"{ratio:.2f}" for heading, ratio in ratios.items()},
        "format": f"{result['format']:.0%}",
        **({"tries": f"{result['tries']:.1f}"} if "tries" in result else {}),
    }


def _row(name: str, figures: dict[str, Any], n: int) -> list[Text | str]:
    return [
        _text(name),
        f"{n:,}",
        f"{figures['greedy']:.1%}",
        _limits(figures["greedy_ci95"]),
        f"{figures['sampled']:.1%}",
        _limits(figures["ci95"]),
    ]


def _limits(interval: list[float] | None) -> str:
    """Return the interval; empty for problems over the same numbers, which have none."""
    return f"{interval[0]:.1%} - {interval[1]:.1%}" if interval else ""


def _text(text: str) -> Text:
    """Return text from a model, a file or a user with control characters made visible and without markup."""
    return Text(printable(text))
