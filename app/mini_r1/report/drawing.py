"""Plots to SVG, by matplotlib: the same drawing for the page, where colours are CSS variables, and for a README.

Why matplotlib and no plotting library in JavaScript: one library draws both; a page needs no 4 MB of script that wants
inline styles, so its Content-Security-Policy can name its own two parts and nothing else; and it prints. What is lost
is zooming; page.js adds the crosshair with the values.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from mini_r1.report.plots import Curve, Plot

SMALL, WIDE, NARROW = (3.9, 2.15), (8.6, 3.8), (3.9, 3.4)
"""Inches at 100 pixels each: a card of three beside each other on a laptop, one on a phone; the first picture, and the
same for a phone."""
DASHES = ((5, 3), (1.5, 2), (7, 2, 1.5, 2))
"""Of levels that are compared with, which share a colour."""
LETTER, ENTRY, ROW = 6.2, 42, 0.17
"""Of a legend: pixels of a letter and of what stands beside a label, inches of a row."""
SMOOTH_FROM = 60
"""Points from which a curve is drawn thin, with its moving mean over a thirtieth of the points thick on it."""

# Stand-ins that no one would choose, each replaced by a variable of the page or by a theme's colour.
ROLES = {
    "a": "#010a01", "b": "#010a02", "c": "#010a03", "d": "#010a04", "e": "#010a05", "f": "#010a06",
    "original": "#010a07", "ink": "#010a08", "muted": "#010a09", "grid": "#010a0a", "paper": "#010a0b",
}  # fmt: skip
LIGHT = {
    "a": "#0072b2", "b": "#d55e00", "c": "#009e73", "d": "#b4558f", "e": "#b07a00", "f": "#3b8fc4",
    "original": "#6b6b6b", "ink": "#20242a", "muted": "#5b636e", "grid": "#e3e6ea", "paper": "#ffffff",
}  # fmt: skip
DARK = {
    "a": "#5cb8f0", "b": "#ff9a5c", "c": "#3ccf9f", "d": "#e79ac8", "e": "#f0c04a", "f": "#9ad1f5",
    "original": "#a8aeb8", "ink": "#e8eaed", "muted": "#a8aeb8", "grid": "#2c323a", "paper": "#14171c",
}  # fmt: skip
VARIABLES = {role: f"var(--{role})" for role in ROLES}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_STYLED = re.compile(r"([a-z-]+):\s*([^;]+)")


def draw(plot: Plot, colours: Mapping[str, str], size: tuple[float, float]) -> tuple[str, dict[str, Any]]:
    """Draw one plot.

    Args:
        plot: not empty.
        colours: of each role.
        size: width and height in inches of 100 pixels.

    Returns:
        The SVG element as text, and where its axes lie: `box` (x0, y0, x1, y1 in the SVG's units), `x` and `y` limits.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # A name in a script that matplotlib's own font lacks is measured by guess; the browser has the letters.
    warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")

    settings = {
        "svg.fonttype": "none", "svg.hashsalt": plot.name + str(size), "font.family": "sans-serif", "font.size": 8.5,
        "axes.facecolor": "none", "axes.edgecolor": ROLES["grid"], "axes.labelcolor": ROLES["muted"],
        "text.color": ROLES["ink"],
        "xtick.color": ROLES["muted"], "ytick.color": ROLES["muted"], "grid.color": ROLES["grid"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
        "grid.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0, "lines.solid_capstyle": "round",
        "lines.linewidth": 1.8, "legend.frameon": False, "text.parse_math": False,
    }  # fmt: skip
    labels = list(dict.fromkeys(c.label for c in [*plot.curves, *plot.beside] if c.points[0] and c.label))
    columns = _columns(labels, size[0])
    more = max(0, math.ceil(len(labels) / columns) - 2) * ROW  # a long legend takes nothing from the plot
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(size[0], size[1] + more), dpi=100, layout="constrained")
        figure.patch.set_alpha(0)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05)  # type: ignore[union-attr,call-arg]
        if plot.beside:
            axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
            _curves(side, plot.beside)
            side.set_xlabel("steps of the original")
            side.set_xlim(0, 470)
            _finish(side, plot)
        else:
            axes = figure.subplots()
        if plot.stacked:
            _stack(axes, plot.curves)
        else:
            _curves(axes, plot.curves)
        _limits(axes, plot)
        if plot.percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        else:
            axes.yaxis.set_major_formatter(_tick)
        if plot.price:
            price = plot.price
            right = axes.secondary_yaxis("right", functions=(lambda hours: hours * price, lambda cost: cost / price))
            right.yaxis.set_major_formatter(_tick)
            right.yaxis.set_major_locator(MaxNLocator(5))
        for _, step in plot.restarts:
            axes.axvline(step - 0.5, color=ROLES["muted"], linewidth=1, linestyle=(0, (2, 2)))
        axes.set_xlabel(plot.x)
        _finish(axes, plot)
        if plot.restarts:
            axes.annotate(
                "restart" + ("s" if len(plot.restarts) > 1 else ""), (plot.restarts[0][1] - 0.5, 1), (4, -3),
                xycoords=axes.get_xaxis_transform(), textcoords="offset points", va="top", color=ROLES["muted"],
                fontsize=7.5,
            )  # fmt: skip
        if len(labels) > 1:
            _legend(figure, [axes, *([side] if plot.beside else [])], labels, columns)
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
    return _cleaned(stream.getvalue(), plot.title, colours, f"{plot.name}-{size[0]:g}-"), place


def _curves(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        steps, values = curve.points
        if not steps:
            continue
        colour = ROLES[curve.colour]
        if curve.style == "marks":
            known = [limits or (value, value) for limits, value in zip(curve.intervals, values, strict=True)]
            bars = [[max(0.0, v - low) for v, (low, _) in zip(values, known, strict=True)]]
            bars.append([max(0.0, high - v) for v, (_, high) in zip(values, known, strict=True)])
            axes.errorbar(
                steps, values, yerr=bars, color=colour, linewidth=1.6, marker="o", markersize=4.5, elinewidth=1.2,
                capsize=2.5, label=curve.label, zorder=4, clip_on=False,
            )  # fmt: skip
        elif curve.style == "published":
            axes.plot(
                steps, values, color=colour, linestyle=(0, (1, 2)), marker="D", markersize=4.5, linewidth=1.4,
                label=curve.label, zorder=3, clip_on=False,
            )  # fmt: skip
        elif curve.style == "dotted":
            dashes = DASHES[sum(c.style == "dotted" for c in curves[: curves.index(curve)]) % len(DASHES)]
            axes.plot(steps, values, color=colour, linestyle=(0, dashes), linewidth=1, alpha=0.7, label=curve.label)
        else:
            if curve.style == "line" and len(steps) >= SMOOTH_FROM:
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
                steps, values = _mean(steps, values)
            mark = "o" if len(steps) == 1 else None
            axes.plot(steps, values, color=colour, marker=mark, markersize=4, label=curve.label)


def _stack(axes: Any, curves: Sequence[Curve]) -> None:
    steps = sorted({step for curve in curves for step in curve.points[0]})
    layers = []
    for curve in curves:
        known = dict(zip(*curve.points, strict=True))
        layers.append([known.get(step, 0.0) for step in steps])
    if len(steps) == 1:
        steps, layers = [steps[0] - 0.5, steps[0] + 0.5], [[v[0], v[0]] for v in layers]
    axes.stackplot(
        steps, layers, colors=[ROLES[c.colour] for c in curves], labels=[c.label for c in curves], linewidth=0,
        alpha=0.85,
    )  # fmt: skip


def _limits(axes: Any, plot: Plot) -> None:
    """Shares start at 0, and so does what is counted; one point gets room on both sides."""
    tops = [v for c in [*plot.curves, *plot.beside] for v in c.points[1]]
    if plot.stacked:
        layers = [dict(zip(*c.points, strict=True)) for c in plot.curves]
        tops = [sum(layer.get(step, 0.0) for layer in layers) for step in {x for layer in layers for x in layer}]
    tops += [high for c in plot.curves for limits in c.intervals if limits for _, high in [limits]]
    steps = [step for c in plot.curves for step in c.points[0]]
    if steps and min(steps) == max(steps):
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    elif steps:
        axes.set_xlim(min(0.0, *steps), max(steps) + 0.02 * (max(steps) - min(steps)))
    if plot.percent:
        room = 1.1 if plot.restarts else 1.02  # for the word at the top
        axes.set_ylim(0, min(room, max(0.1, 1.12 * max(tops, default=1.0))))
    elif tops and min(tops) >= 0:
        axes.set_ylim(0, 1.12 * max(tops) or 1.0)


def _finish(axes: Any, plot: Plot) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines["bottom"].set_color(ROLES["grid"])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=plot.x.startswith("optimizer"), steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)


def _tick(value: float, _: object) -> str:
    """A value beside an axis: 12,500, 0.00015."""
    return f"{value:,.5g}" if abs(value) >= 1e-4 or abs(value) < 1e-7 else f"{value:.8f}".rstrip("0")


def _columns(labels: Sequence[str], inches: float) -> int:
    """Columns of a legend, so that no label runs into the next or out of the picture."""
    longest = max(map(len, labels), default=0)
    return max(1, min(4, len(labels), int(100 * inches / (ENTRY + LETTER * longest))))


def _legend(figure: Any, all_axes: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    found: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        [found[label] for label in labels], labels, loc="outside upper left", ncols=columns,
        fontsize=8, handlelength=1.6, columnspacing=1.6, borderpad=0.1, borderaxespad=0, labelspacing=0.4,
        labelcolor=ROLES["ink"],
    )  # fmt: skip


def _mean(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Moving mean over a thirtieth of the points, at least 5, fewer at the ends."""
    half = max(2, len(values) // 60)
    means = []
    for i in range(len(values)):
        near = values[max(0, i - half) : i + half + 1]
        means.append(sum(near) / len(near))
    return list(steps), means


def _cleaned(svg: str, title: str, colours: Mapping[str, str], prefix: str) -> str:
    """matplotlib's SVG for inclusion in a page: attributes instead of inline styles, which a strict policy refuses,
    no style element, which would reach beyond the picture, names that are this picture's own, and roles instead of
    stand-in colours."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)  # noqa: S314 - matplotlib's own output
    by_colour = {stand_in: colours[role] for role, stand_in in ROLES.items()}
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
        for name, value in _STYLED.findall(parent.attrib.pop("style", "")):
            if name == "font":  # "8px sans-serif", with the size as the only thing that is not the page's own
                size = re.search(r"[0-9.]+px", value)
                parent.set("font-size", size.group() if size else "8px")
            elif name == "font-size" or not name.startswith("font"):
                parent.set(name, value.strip())
        for name, value in list(parent.attrib.items()):
            if value.lower() in by_colour:
                parent.set(name, by_colour[value.lower()])
            elif name == "id":
                parent.set(name, prefix + value)
            elif name == f"{{{_XLINK}}}href":
                parent.set(name, f"#{prefix}{value[1:]}")
            elif value.startswith("url(#"):
                parent.set(name, f"url(#{prefix}{value[5:]}")
    root.set("role", "img")
    root.set("aria-label", title)
    root.set("stroke-linejoin", "round")
    root.set("font-family", "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")
