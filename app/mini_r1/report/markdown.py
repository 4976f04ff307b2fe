"""The report for a README: Markdown, and every plot as SVG for a light and a dark page. It has no text of the model."""

from collections.abc import Sequence
from pathlib import Path

from mini_r1.console import as_markdown
from mini_r1.report import drawing
from mini_r1.report.original_curve import PUBLISHED, has_original_task
from mini_r1.report.plots import Plot
from mini_r1.report.summary import EVALUATION_HEADINGS, Summary, compare_tiles, evaluation_rows, recipe_facts
from mini_r1.run.files import write_text


def write_markdown(folder: Path, summaries: Sequence[Summary], plots: Sequence[Plot]) -> list[Path]:
    """Write `report.md` and the plots that are not empty to a folder; return the files, the Markdown first."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "report.md"]
    pictures = []
    for plot in plots:
        if plot.empty:
            continue
        size = drawing.WIDE if plot.name == "success" else drawing.SMALL
        for theme, colours in (("light", drawing.LIGHT), ("dark", drawing.DARK)):
            files.append(folder / f"{plot.name}-{theme}.svg")
            write_text(files[-1], drawing.draw(plot, colours, size) + "\n", sync=False)
        picture = (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{plot.name}-dark.svg">'
            f'<img alt="{plot.title}" src="{plot.name}-light.svg" width="{round(100 * size[0])}"></picture>'
        )
        pictures += [f"**{plot.title}.** {as_markdown(plot.note)}", "", picture, ""]
    names = [as_markdown(summary.run.name) for summary in summaries]
    lines = [f"# {', '.join(names)}", ""]
    if len(names) > 1:
        lines += table(["", *names], [[label, *values] for label, values in compare_tiles(summaries)])
    for name, summary in zip(names, summaries, strict=True):
        lines += [*([f"## {name}", ""] if len(names) > 1 else []), *_run_lines(summary)]
    rows = [[f.key, *f.values] for f in recipe_facts([summary.run for summary in summaries]) if f.differs]
    if rows:
        lines += ["## Differences between the recipes", "", *table(["key", *names], rows)]
    lines += pictures
    if any(has_original_task(summary.run) for summary in summaries):
        what, source = as_markdown(PUBLISHED["what"]), as_markdown(PUBLISHED["source"])
        lines += [f"The original's figures are {what}. Source: {source}.", ""]
    write_text(files[0], "\n".join(lines), sync=False)
    return files


def _run_lines(summary: Summary) -> list[str]:
    lines = [f"{as_markdown(summary.sentence)} State: {as_markdown(summary.run.state_sentence())}.", ""]
    lines += table(["", "", ""], summary.tiles, strong=1)
    if summary.caveat:
        lines += [as_markdown(summary.caveat), ""]
    lines += [*(f"- {as_markdown(each.sentence)}" for each in summary.comparisons), ""]
    if rows := evaluation_rows(summary.run):
        lines += ["Held out:", "", *table(EVALUATION_HEADINGS, [row[:-1] for row in rows])]
    if summary.run.missing:
        lines += ["Missing:", "", *(f"- {as_markdown(sentence)}" for sentence in summary.run.missing), ""]
    return lines


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> list[str]:
    """Return the lines of a Markdown table, with one bold column if `strong` is its index, and an empty line."""
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    for row in rows:
        cells = [as_markdown(cell) for cell in row]
        lines.append(f"| {' | '.join(f'**{cell}**' if at == strong else cell for at, cell in enumerate(cells))} |")
    return [*lines, ""]
