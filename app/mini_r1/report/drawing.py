"""Plots to SVG, by matplotlib: the same drawing for the page, where colours are CSS variables, and for a README.

matplotlib rather than a library in JavaScript: it draws both, and an SVG prints; such a library is 4 MB of script and
needs inline styles, which the page's Content-Security-Policy forbids. page.js adds a crosshair.
"""

import io
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

from mini_r1.report.plots import Curve, Plot

SMALL, WIDE, NARROW = (3.9, 2.15), (8.6, 3.8), (3.9, 3.4)
"""Inches at 100 pixels each: three cards in a row on a laptop, one on a phone; the first picture, and it on a phone."""
DASHES = ((5, 3), (1.5, 2), (7, 2, 1.5, 2))  # dashes of dotted levels, which share a colour
TICK = 34  # pixels of a tick's label, such as 12,500, and the space after it
LETTER, ENTRY, ROW = 6.2, 42, 0.17  # of a legend: pixels of a letter, of an entry without its label; inches of a row
SMOOTH_FROM = 60  # points from which a curve is thin, with its moving mean over a thirtieth of them as a thick line

LIGHT = {
    "a": "#0072b2", "b": "#d55e00", "c": "#009e73", "d": "#b4558f", "e": "#b07a00", "f": "#3b8fc4",
    "original": "#6b6b6b", "ink": "#20242a", "muted": "#5b636e", "grid": "#e3e6ea", "paper": "#ffffff",
    "back": "#f4f6f8", "soft": "#eef1f4", "good": "#007a5c", "bad": "#b04a00", "edge": "#868e99", "mark": "#fff0b8",
}  # fmt: skip
DARK = {
    "a": "#5cb8f0", "b": "#ff9a5c", "c": "#3ccf9f", "d": "#e79ac8", "e": "#f0c04a", "f": "#9ad1f5",
    "original": "#a8aeb8", "ink": "#e8eaed", "muted": "#a8aeb8", "grid": "#2c323a", "paper": "#14171c",
    "back": "#0d0f13", "soft": "#1d2128", "good": "#3ccf9f", "bad": "#ff9a5c", "edge": "#6b7480", "mark": "#574a12",
}  # fmt: skip
VARIABLES = {role: f"var(--{role})" for role in LIGHT}
ROLES = {role: f"#010a{index:02x}" for index, role in enumerate(LIGHT)}
"""Colours that nothing else has; each is replaced by a CSS variable or a theme's colour."""

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_STYLE = re.compile(r"([a-z-]+):\s*([^;]+)")
_SETTINGS = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8.5, "axes.facecolor": "none",
    "axes.edgecolor": ROLES["grid"], "axes.labelcolor": ROLES["muted"], "text.color": ROLES["ink"],
    "xtick.color": ROLES["muted"], "ytick.color": ROLES["muted"], "grid.color": ROLES["grid"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "grid.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0,
    "xtick.major.pad": 6,  # the first label is not next to that of the y axis
    "lines.solid_capstyle": "round", "lines.linewidth": 1.8, "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip


def draw(plot: Plot, colours: Mapping[str, str], size: tuple[float, float]) -> str:
    """Return a plot that is not empty as an SVG element, drawn with a colour for each role and a size in inches.

    Its data-place is that of the axes: `box` (x0, y0, x1, y1 in the SVG's units), `x` and `y` limits.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # A script that matplotlib's own font lacks is measured by a guess; the browser has its letters.
    warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")

    labels = list(dict.fromkeys(c.label for c in [*plot.curves, *plot.side] if c.points[0] and c.label))
    entry = ENTRY + LETTER * max(map(len, labels), default=0)  # no label runs into the next or out of the picture
    columns = max(1, min(4, len(labels), int(100 * size[0] / entry)))
    more = max(0, math.ceil(len(labels) / columns) - 2) * ROW  # a long legend takes no space from the plot
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": plot.name + str(size)}):
        figure = Figure(figsize=(size[0], size[1] + more), dpi=100, layout="constrained")
        figure.patch.set_alpha(0)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05)  # type: ignore[union-attr,call-arg]
        if plot.side:
            axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
            _draw_curves(side, plot.side)
            side.set_xlabel("steps of the original" if size[0] >= WIDE[0] else "original")
            side.set_xlim(0, 470)
        else:
            axes = figure.subplots()
        if plot.stacked:
            _draw_stack(axes, plot.curves)
        else:
            _draw_curves(axes, plot.curves)
        _set_limits(figure, plot)
        axes.set_xlabel(plot.x)
        axes.yaxis.set_major_formatter((lambda value, _: f"{100 * value:.4g} %") if plot.percent else _format_tick)
        for each in figure.axes:
            integer = plot.x.startswith("optimizer")
            width = (18 if plot.side and each is not axes else 70) * size[0]  # pixels; the rest are margins
            ticks = max(1, min(6, int(width / TICK)))
            each.xaxis.set_major_locator(MaxNLocator(ticks, integer=integer, steps=[1, 2, 2.5, 5, 10]))
            each.xaxis.set_major_formatter(_format_tick)
            each.yaxis.set_major_locator(MaxNLocator(5))
        if price := plot.price:
            right = axes.secondary_yaxis("right", functions=(lambda hours: hours * price, lambda cost: cost / price))
            right.yaxis.set_major_formatter(_format_tick)
            right.yaxis.set_major_locator(MaxNLocator(5))
        for step in plot.restarts:
            axes.axvline(step - 0.5, color=ROLES["muted"], linewidth=1, linestyle=(0, (2, 2)))
        if plot.restarts:
            axes.annotate(
                "restart" + ("s" if len(plot.restarts) > 1 else ""), (plot.restarts[0] - 0.5, 1), (4, -3),
                xycoords=axes.get_xaxis_transform(), textcoords="offset points", va="top", color=ROLES["muted"],
                fontsize=7.5,
            )  # fmt: skip
        if len(labels) > 1:
            handles: dict[str, Any] = {}
            for each in figure.axes:
                handles = {**dict(zip(*reversed(each.get_legend_handles_labels()), strict=True)), **handles}
            figure.legend(
                [handles[label] for label in labels], labels, loc="outside upper left", ncols=columns, fontsize=8,
                handlelength=1.6, columnspacing=1.6, borderpad=0.1, borderaxespad=0, labelspacing=0.4,
                labelcolor=ROLES["ink"],
            )  # fmt: skip
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        height = figure.get_figheight() * figure.dpi
        box = axes.get_window_extent()
        scale = 72 / figure.dpi  # matplotlib writes SVG in points
        place = {
            "box": [round(v * scale, 2) for v in (box.x0, height - box.y1, box.x1, height - box.y0)],
            "x": list(axes.get_xlim()),
            "y": list(axes.get_ylim()),
        }
    attributes = {"aria-label": plot.title, "data-place": json.dumps(place)}
    return _clean_svg(stream.getvalue(), attributes, colours, f"{plot.name}-{size[0]:g}-")


def _draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    dotted = 0
    for curve in curves:
        steps, values = curve.points
        if not steps:
            continue
        options: dict[str, Any] = {"color": ROLES[curve.colour], "label": curve.label}
        if curve.style == "marks":
            limits = [known or (value, value) for known, value in zip(curve.intervals, values, strict=True)]
            bars = [(max(0.0, v - low), max(0.0, high - v)) for v, (low, high) in zip(values, limits, strict=True)]
            options |= {"linewidth": 1.6, "elinewidth": 1.2, "capsize": 2.5, "zorder": 4, "clip_on": False}
            axes.errorbar(steps, values, yerr=[*zip(*bars, strict=True)], marker="o", markersize=4.5, **options)
        elif curve.style == "published":
            options |= {"linestyle": (0, (1, 2)), "linewidth": 1.4, "zorder": 3, "clip_on": False}
            axes.plot(steps, values, marker="D", markersize=4.5, **options)
        elif curve.style == "dotted":
            axes.plot(steps, values, linestyle=(0, DASHES[dotted % len(DASHES)]), linewidth=1, alpha=0.7, **options)
            dotted += 1
        else:
            if curve.style == "line" and len(steps) >= SMOOTH_FROM:
                axes.plot(steps, values, color=options["color"], linewidth=0.7, alpha=0.35)
                half = max(2, len(values) // 60)
                values = [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
            axes.plot(steps, values, marker="o" if len(steps) == 1 else None, markersize=4, **options)


def _draw_stack(axes: Any, curves: Sequence[Curve]) -> None:
    steps = sorted({step for curve in curves for step in curve.points[0]})
    known = [dict(zip(*curve.points, strict=True)) for curve in curves]
    layers = [[values.get(step, 0.0) for step in steps] for values in known]
    if len(steps) == 1:
        steps, layers = [steps[0] - 0.5, steps[0] + 0.5], [layer * 2 for layer in layers]
    colours = [ROLES[curve.colour] for curve in curves]
    axes.stackplot(steps, layers, colors=colours, labels=[c.label for c in curves], linewidth=0, alpha=0.85)


def _set_limits(figure: Any, plot: Plot) -> None:
    """Start shares and counts at 0, and leave space on both sides of a single point."""
    axes, data = figure.axes[0], figure.axes[0].dataLim
    low, top = min(each.dataLim.y0 for each in figure.axes), max(each.dataLim.y1 for each in figure.axes)
    if data.x0 == data.x1:
        axes.set_xlim(data.x0 - 1, data.x0 + 1)
    else:
        axes.set_xlim(min(0.0, data.x0), data.x1 + 0.02 * (data.x1 - data.x0))
    if plot.percent:
        highest = 1.1 if plot.restarts else 1.02  # the word "restart" is at the top
        axes.set_ylim(0, min(highest, max(0.1, 1.12 * top)))
    elif low >= 0:
        axes.set_ylim(0, 1.12 * top or 1.0)


def _format_tick(value: float, _: object) -> str:
    """Return the label of a tick: 12,500, 0.00015, 4.5e-7."""
    return f"{value:,.5g}" if abs(value) >= 1e-4 else f"{value:.3g}".replace("e-0", "e-")


def _clean_svg(svg: str, attributes: dict[str, str], colours: Mapping[str, str], prefix: str) -> str:
    """Return matplotlib's SVG fit for a page with a strict policy.

    Attributes replace inline styles, which the policy forbids; there is no style element, which would apply to the
    whole page; ids begin with `prefix`; and the colours of ROLES become those of `colours`.
    """
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _HREF[1:-5])
    root = ElementTree.fromstring(svg)  # noqa: S314 - matplotlib's own output
    by_colour = {stand_in: colours[role] for role, stand_in in ROLES.items()}
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}style", f"{_SVG}metadata"):
                parent.remove(child)
        for name, value in _STYLE.findall(parent.attrib.pop("style", "")):
            if name == "font":  # such as "8px sans-serif"; the family is the page's
                size = re.search(r"[0-9.]+px", value)
                parent.set("font-size", size.group() if size else "8px")
            elif name == "font-size" or not name.startswith("font"):
                parent.set(name, value.strip())
        for name, value in list(parent.attrib.items()):
            if value.lower() in by_colour:
                parent.set(name, by_colour[value.lower()])
            elif name == "id":
                parent.set(name, prefix + value)
            elif name == _HREF:
                parent.set(name, f"#{prefix}{value[1:]}")
            elif value.startswith("url(#"):
                parent.set(name, f"url(#{prefix}{value[5:]}")
    root.attrib |= attributes | {
        "role": "img", "stroke-linejoin": "round",
        "font-family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    }  # fmt: skip
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")
