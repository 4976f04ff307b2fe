"""The report for a README: Markdown, and every plot as SVG for a light and a dark page. No model's text is in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mini_r1.report import drawing, seed, summary
from mini_r1.report.plots import Plot
from mini_r1.rundir import write_text

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
    lines = [f"# {', '.join(escaped(s.run.name) for s in summaries)}", ""]
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
        pictures[plot.name] = [f"**{plot.title}.** {escaped(plot.note)}", "", picture, ""]
    for s in summaries:
        lines += _of_run(s, alone=len(summaries) == 1)
    if len(summaries) > 1:
        names = [escaped(s.run.name) for s in summaries]
        rows = [[key, *values] for key, values, differ, _ in summary.recipe_table([s.run for s in summaries]) if differ]
        lines += ["## Where the recipes differ", "", *table(["key", *names], rows)] if rows else []
    lines += [line for picture in pictures.values() for line in picture]
    published = seed.published()
    lines += [f"The seed's figures are {escaped(published['what'])}. Source: {escaped(published['source'])}.", ""]
    write_text(files[0], "\n".join(lines), sync=False)
    return files


def _of_run(s: summary.Summary, *, alone: bool) -> list[str]:
    lines = [] if alone else [f"## {escaped(s.run.name)}", ""]
    lines += [f"{escaped(s.sentence)} State: {escaped(s.run.state_sentence())}.", ""]
    lines += table(["", "", ""], [[tile.label, f"**{tile.value}**", tile.detail] for tile in s.tiles])
    if s.caveat:
        lines += [escaped(s.caveat), ""]
    lines += [*(f"- {escaped(standing.sentence)}" for standing in s.standings), ""]
    evaluations = summary.evaluation_rows(s.run)
    if evaluations:
        heads = ["step", "problems", "greedy (95 %)", "sampled (95 %)", "pass@k", "tries", "format"]
        lines += ["Held out:", "", *table(heads, [row[:7] for row in evaluations])]
    if s.run.missing:
        lines += ["Missing:", "", *(f"- {escaped(sentence)}" for sentence in s.run.missing), ""]
    return lines


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    cells = ([cell if cell.startswith("**") else escaped(cell) for cell in row] for row in rows)
    return [*lines, *(f"| {' | '.join(row)} |" for row in cells), ""]


def escaped(text: str) -> str:
    """Text that Markdown and HTML take as text."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", plain)
