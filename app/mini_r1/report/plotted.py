"""What the plots of a report show, as CSV: one line for each point."""

import csv
import io
from collections.abc import Sequence

from mini_r1.report.plots import Plot

HEADER = ("plot", "run", "curve", "x", "value", "low", "high")


def plotted_csv(plots: Sequence[Plot], runs: Sequence[str]) -> str:
    """Return plot, run, curve, x (step or time), value and 95 % limits of each point; page.js does the same."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(HEADER)
    for plot in plots:
        for curve in [] if plot.empty else [*plot.curves, *plot.side]:
            run, label = "" if curve.run is None else _plain(runs[curve.run]), _plain(curve.label)
            limits = curve.intervals or [None] * len(curve.points[0])
            for x, value, ends in zip(*curve.points, limits, strict=True):
                rows.writerow([plot.name, run, label, x, value, *(ends or ("", ""))])
    return text.getvalue()


def _plain(text: str) -> str:
    """Return a name that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
