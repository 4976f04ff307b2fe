"""`mini-r1 report`: read the runs, draw, pack, write one file."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import mini_r1
from mini_r1.disk_errors import disk_error
from mini_r1.errors import KitError
from mini_r1.report import drawing, original_curve, samples_browser, summary
from mini_r1.report import markdown as markdown_room
from mini_r1.report.plots import Plot, plots
from mini_r1.run.files import write_text
from mini_r1.run.reader import RunData, read_run, text
from mini_r1.tasks.countdown import task

MAX_RUNS = 6
"""Runs on one page: as many as there are colours to tell them apart by."""
SAMPLES = 20_000
"""Completions on a page: what filters and search were measured with."""
MAX_BYTES = 15_000_000
"""Of a page: what a mail or a ticket still takes."""
PACKED_BYTES = 12_500_000
"""Of it, for the packed completions; text and plots take less than 2 MB."""

SCRIPTS = ("page.js", "reader.js", "samples.js")
"""In this order they are the page's one script."""
TITLE = "Mini-R1 report</title>"
"""In the head of every page that was made here, and so what tells it from a file of the user's own."""
HEAD_BYTES = 64 << 10
"""Of a file, for the title to be in: what comes before it is a policy and the names of at most six runs."""

Progress = Callable[[str], None]


@dataclass
class Report:
    """What was made."""

    path: Path
    size: int
    summaries: list[summary.Summary]
    shown: int
    """Completions on the page."""
    total: int
    """Completions of the runs."""
    markdown: list[Path] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "report": str(self.path),
            "bytes": self.size,
            "samples": self.shown,
            "completions": self.total,
            "markdown": [str(path) for path in self.markdown],
            "runs": [s.to_json() for s in self.summaries],
        }


def build_report(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    markdown: Path | None = None,
    price: float | None = None,
    limit: int = SAMPLES,
    progress: Progress = lambda line: None,
) -> Report:
    """Make the page, and the Markdown where a folder for it is named.

    Args:
        paths: run directories.
        out: the page; None is `report.html` in the run directory, of several runs in the current one.
        markdown: a folder for `report.md` and its plots.
        price: of one GPU for an hour.
        limit: completions on the page at most.
        progress: called with each line of progress.

    Raises:
        KitError: there is no run, there are too many, the price is no number, or a file cannot be written or is
            somebody's own.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise KitError("a run is named twice")
    if len(paths) > MAX_RUNS:
        raise KitError(f"{len(paths)} runs on one page cannot be told apart: name at most {MAX_RUNS}")
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise KitError(f"a GPU cannot cost {price} an hour: name a price of 0 or more")
    target = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    progress("reading metrics and attempts")
    with _said_if_not_read(paths[0]):
        runs = [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    _check_target(target)  # before minutes of reading
    summaries = [summary.summarise(run, price) for run in runs]
    made = plots(runs, price)
    progress("drawing")
    drawn = {plot.name: _drawn(plot) for plot in made if not plot.empty}
    with _said_if_not_read(paths[0]):
        chosen, packed = _packed(runs, limit, progress)
    page = _page(summaries, made, drawn, chosen, packed)
    with _said_if_not_written(target):
        write_text(target, page, sync=False)
    written: list[Path] = []
    if markdown is not None:
        progress("drawing for the Markdown")
        with _said_if_not_written(markdown):
            written = markdown_room.write(markdown, summaries, made)
    return Report(target, target.stat().st_size, summaries, len(chosen), chosen.total, written)


@contextlib.contextmanager
def _said_if_not_read(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # no right to it, or a disk's fault: what is missing would be half of the truth
        raise disk_error(error) or KitError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _said_if_not_written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its own name is that of a scratch file, which nobody asked for
        raise disk_error(error) or KitError(f"{path}: cannot be written: {error.strerror}") from error


def _check_target(target: Path) -> None:
    """Refuse what cannot become the page, or is a file that was not made here: it would be gone."""
    another = "choose another file with --out"
    try:
        if not target.parent.is_dir():
            raise KitError(f"there is no folder {target.parent}: make it, or {another}")
        if target.is_dir():
            raise KitError(f"{target} is a folder: {another}")
        if not target.exists():
            return
        if not target.is_file():
            raise KitError(f"{target} is no file that could be replaced: {another}")
        with target.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise KitError(f"{target}: cannot be read: {error.strerror}: {another}") from error
    if head and TITLE.encode("ascii") not in head:
        raise KitError(f"{target} is there and is no report: {another}, or delete it first")


def _names(paths: Sequence[Path]) -> list[str]:
    """The directories' names, with as many of those above as it takes to tell the runs apart."""
    parts = [path.absolute().parts for path in paths]
    for depth in range(1, 32):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _drawn(plot: Plot) -> dict[str, Any]:
    size = drawing.WIDE if plot.name == "success" else drawing.SMALL
    svg, place = drawing.draw(plot, drawing.VARIABLES, size)
    drawn: dict[str, Any] = {"svg": svg, "place": place}
    if plot.name == "success":  # on a phone the wide one would be a stamp
        drawn["narrow"], drawn["narrow_place"] = drawing.draw(plot, drawing.VARIABLES, drawing.NARROW)
    return drawn


def _packed(runs: Sequence[RunData], limit: int, progress: Progress) -> tuple[samples_browser.Samples, str]:
    """The completions, fewer of them where their text is long, compressed as text of a script element."""
    while True:
        chosen = samples_browser.collect(runs, limit, lambda count: progress(f"reading completions: {count:,}"))
        raw = json.dumps(chosen.to_json(), separators=(",", ":")).encode("ascii")
        packed = base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")
        if len(packed) <= PACKED_BYTES or len(chosen) <= len(runs):
            return chosen, packed
        limit = int(len(chosen) * 0.95 * PACKED_BYTES / len(packed))
        progress(f"their text is long: {limit:,} of them fit")


def _page(
    summaries: Sequence[summary.Summary],
    made: Sequence[Plot],
    drawn: Mapping[str, dict[str, Any]],
    chosen: samples_browser.Samples,
    packed: str,
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    room = files("mini_r1.report")
    css = _variables() + (room / "page.css").read_text("utf-8")
    script = "(() => {\n" + "".join((room / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    runs = [s.run for s in summaries]
    data = {
        "plots": {plot.name: _for_crosshair(plot, drawn[plot.name]) for plot in made if plot.name in drawn},
        "runs": [run.name for run in runs],
        "reflection": task.REFLECTION_PATTERN.replace(" ", r"\s+"),
        "total": chosen.total,
    }
    environment = Environment(
        loader=PackageLoader("mini_r1.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, finalize=_unbroken,
    )  # fmt: skip
    template = environment.get_template("page.html.j2")
    return template.render(
        summaries=summaries,
        runs=runs,
        places=[text(str(run.run.path), 1_000) for run in runs],
        plots=made,
        drawn={name: {k: Markup(v) for k, v in d.items() if k in ("svg", "narrow")} for name, d in drawn.items()},
        original=original_curve.published(),
        recipe=summary.recipe_table(runs),
        provenance=summary.provenance_table(runs),
        attempts=[summary.attempt_rows(run) for run in runs],
        evaluations=[summary.evaluation_rows(run) for run in runs],
        strata=[summary.strata_rows(run) for run in runs],
        failures=[summary.failure_rows(run) for run in runs],
        chosen=chosen,
        css=Markup(css),
        script=Markup(script),
        css_hash=_hash(css),
        script_hash=_hash(script),
        data=Markup(json_for_page(data)),
        packed=Markup(packed),
        version=mini_r1.__version__,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _unbroken(value: Any) -> Any:
    """A number and its percent sign stay on one line. What is Markup is left as it is: its hash is told already."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value


def json_for_page(value: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>`, `&`, and nothing but ASCII."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _for_crosshair(plot: Plot, drawn: dict[str, Any]) -> dict[str, Any]:
    curves = [
        {"label": c.label, "colour": c.colour, "x": c.points[0], "y": c.points[1], "ci": c.intervals}
        for c in plot.curves
        if c.points[0]
    ]
    return {
        "place": drawn["place"], "narrow": drawn.get("narrow_place"), "percent": plot.percent, "curves": curves,
        "steps": plot.x.startswith("optimizer"),
    }  # fmt: skip


def _variables() -> str:
    """The two themes as CSS variables; the system's choice counts until the reader makes one."""
    light, dark = (
        "".join(f"--{role}:{colour};" for role, colour in colours.items()) for colours in (drawing.LIGHT, drawing.DARK)
    )
    return (  # paper is light, whatever the screen is
        f":root{{color-scheme:light;{light}}}\n@media screen{{\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n}}\n"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
