"""The report for a README: Markdown, and every plot as SVG for a light and a dark page. No model's text is in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mini_r1.console import as_markdown
from mini_r1.report import drawing, original_curve, summary
from mini_r1.report.plots import Plot
from mini_r1.run.files import write_text

FILE = "report.md"


def write(folder: Path, summaries: Sequence[summary.Summary], made: Sequence[Plot]) -> list[Path]:
    """Write `report.md` and the plots into a folder, made if it is not there.

    Args:
        folder: existing files of the same names are replaced, others left alone.
        summaries: of each run.
        made: the plots; empty ones are left out.

    Returns:
        The files, the Markdown first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {', '.join(as_markdown(s.run.name) for s in summaries)}", ""]
    files = [folder / FILE]
    pictures: dict[str, list[str]] = {}
    for plot in made:
        if plot.empty:
            continue
        size = drawing.WIDE if plot.name == "success" else drawing.SMALL
        for theme, colours in (("light", drawing.LIGHT), ("dark", drawing.DARK)):
            path = folder / f"{plot.name}-{theme}.svg"
            write_text(path, drawing.draw(plot, colours, size)[0] + "\n", sync=False)
            files.append(path)
        picture = (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{plot.name}-dark.svg">'
            f'<img alt="{plot.title}" src="{plot.name}-light.svg" width="{round(100 * size[0])}"></picture>'
        )
        pictures[plot.name] = [f"**{plot.title}.** {as_markdown(plot.note)}", "", picture, ""]
    for s in summaries:
        lines += _of_run(s, alone=len(summaries) == 1)
    if len(summaries) > 1:
        names = [as_markdown(s.run.name) for s in summaries]
        rows = [[key, *values] for key, values, differ, _ in summary.recipe_table([s.run for s in summaries]) if differ]
        lines += ["## Where the recipes differ", "", *table(["key", *names], rows)] if rows else []
    lines += [line for picture in pictures.values() for line in picture]
    published = original_curve.published()
    what, source = as_markdown(published["what"]), as_markdown(published["source"])
    lines += [f"The original's figures are {what}. Source: {source}.", ""]
    write_text(files[0], "\n".join(lines), sync=False)
    return files


def _of_run(s: summary.Summary, *, alone: bool) -> list[str]:
    lines = [] if alone else [f"## {as_markdown(s.run.name)}", ""]
    lines += [f"{as_markdown(s.sentence)} State: {as_markdown(s.run.state_sentence())}.", ""]
    lines += table(["", "", ""], [[tile.label, tile.value, tile.detail] for tile in s.tiles], strong=1)
    if s.caveat:
        lines += [as_markdown(s.caveat), ""]
    lines += [*(f"- {as_markdown(standing.sentence)}" for standing in s.standings), ""]
    evaluations = summary.evaluation_rows(s.run)
    if evaluations:
        heads = ["step", "problems", "greedy (95 %)", "sampled (95 %)", "pass@k", "tries", "format"]
        lines += ["Held out:", "", *table(heads, [row[:7] for row in evaluations])]
    if s.run.missing:
        lines += ["Missing:", "", *(f"- {as_markdown(sentence)}" for sentence in s.run.missing), ""]
    return lines


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> list[str]:
    """A Markdown table and an empty line; the cells of one column may stand out."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        cells = [as_markdown(cell) for cell in row]
        lines.append(f"| {' | '.join(f'**{cell}**' if at == strong else cell for at, cell in enumerate(cells))} |")
    return [*lines, ""]
