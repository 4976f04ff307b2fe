"""`mini-r1 report`: read the runs, draw the plots, pack the completions, write one file."""

import base64
import gzip
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import mini_r1
from mini_r1.console import text
from mini_r1.errors import KitError
from mini_r1.report import drawing
from mini_r1.report.markdown import write_markdown
from mini_r1.report.original_curve import PUBLISHED, has_original_task
from mini_r1.report.plots import GROUPS, SERIES, Plot, make_plots
from mini_r1.report.plotted import HEADER, plotted_csv
from mini_r1.report.samples_browser import Samples, collect_samples
from mini_r1.report.summary import Summary, compare_tiles, provenance_facts, recipe_facts, summarise, tables
from mini_r1.run.files import write_text
from mini_r1.run.reader import RunData, read_run
from mini_r1.tasks.reflections import REFLECTION_PATTERN

MAX_RUNS = len(SERIES)  # runs on one page: one for each colour
SAMPLES = 20_000  # completions on a page: filters and search were measured with this number
MAX_BYTES = 15_000_000  # largest page: mail and ticket systems accept it
PACKED_BYTES = 12_500_000  # share of it for the packed completions; text and plots take less than 2 MB
SHOWN_KEYS = 6  # most keys in which recipes differ that the first screen of a comparison has
SCRIPTS = ("page.js", "reader.js", "samples.js")  # joined in this order, they are the page's one script
TITLE = "Mini-R1 report</title>"  # in the head of every page made here: other files are not overwritten
HEAD_BYTES = 64 << 10  # searched for the title: before it are a policy and the names of at most six runs

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written."""

    path: Path
    size: int
    summaries: list[Summary]
    shown: int  # completions on the page
    total: int  # completions of the runs
    markdown: list[Path]
    csv: Path | None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "report": str(self.path),
            "bytes": self.size,
            "samples": self.shown,
            "completions": self.total,
            "markdown": [str(path) for path in self.markdown],
            "csv": None if self.csv is None else str(self.csv),
            "runs": [summary.to_json() for summary in self.summaries],
        }


def build_report(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    markdown: Path | None = None,
    csv: Path | None = None,
    price: float | None = None,
    limit: int = SAMPLES,
    progress: Progress = lambda line: None,
) -> WrittenReport:
    """Write the page of some runs; to the folder `markdown` also `report.md` and its plots, to `csv` what is plotted.

    `out` is by default `report.html` in the run directory, for several runs in the current one; `price` is that of a
    GPU-hour; `limit` is the maximum number of completions. Invalid arguments and a file that would replace another
    one are KitErrors.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise KitError("a run is named twice")
    if len(paths) > MAX_RUNS:
        raise KitError(f"{len(paths)} runs on one page cannot be distinguished: name at most {MAX_RUNS}")
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise KitError(f"a GPU cannot cost {price} an hour: name a price of 0 or more")
    target = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    written: list[Path] = []
    progress("reading metrics and attempts")
    runs = [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    # Before completions are read, which takes minutes:
    _refuse_other_file(target, TITLE, "--out")
    if csv is not None:
        _refuse_other_file(csv, ",".join(HEADER), "--csv")
    summaries = [summarise(run, price) for run in runs]
    plots = make_plots(runs, price)
    progress("drawing")
    for plot in plots:
        # On a phone the wide picture is too small to read.
        sizes = (drawing.WIDE, drawing.NARROW) if plot.name == "success" else (drawing.SMALL,)
        plot.svgs = [] if plot.empty else [drawing.draw(plot, drawing.VARIABLES, size) for size in sizes]
    samples, packed = _pack(runs, limit, progress)
    write_text(target, _render(summaries, plots, samples, packed), sync=False)
    if csv is not None:
        write_text(csv, plotted_csv(plots, [run.name for run in runs]), sync=False)
    if markdown is not None:
        progress("drawing for the Markdown")
        written = write_markdown(markdown, summaries, plots)
    return WrittenReport(target, target.stat().st_size, summaries, len(samples), samples.total, written, csv)


def _refuse_other_file(target: Path, mark: str, option: str) -> None:
    """Raise KitError unless a file can be written there that replaces nothing but one that begins with this mark."""
    another = f"choose another file with {option}"
    try:
        if not target.parent.is_dir():
            raise KitError(f"there is no folder {target.parent}: make it, or {another}")
        if not target.exists():
            return
        if not target.is_file():
            raise KitError(f"{target} is not a regular file: {another}")
        with target.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise KitError(f"{target}: cannot be read: {error.strerror}: {another}") from error
    if head and mark.encode("ascii") not in head:
        raise KitError(f"{target} exists and is not a file of `mini-r1 report`: {another}, or delete it first")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the directories' names; if two are the same, their paths from the common parent on."""
    names = [path.absolute().name for path in paths]
    common = os.path.commonpath([path.absolute() for path in paths])
    return names if len(set(names)) == len(names) else [os.path.relpath(path, common) for path in paths]


def _pack(runs: Sequence[RunData], limit: int, progress: Progress) -> tuple[Samples, str]:
    """Return completions, fewer of them if their text is long, and their compressed form for a script element."""
    while True:
        samples = collect_samples(runs, limit, lambda count: progress(f"reading completions: {count:,}"))
        raw = json.dumps(samples.to_json(), separators=(",", ":")).encode("ascii")
        packed = base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")
        if len(packed) <= PACKED_BYTES or len(samples) <= len(runs):
            return samples, packed
        limit = int(len(samples) * 0.95 * PACKED_BYTES / len(packed))
        progress(f"their text is long: {limit:,} of them fit")


def _render(summaries: Sequence[Summary], plots: Sequence[Plot], samples: Samples, packed: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup

    folder = files("mini_r1.report")
    css = _theme_variables() + (folder / "page.css").read_text("utf-8")
    script = "(() => {\n" + "".join((folder / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    runs = [summary.run for summary in summaries]
    data = {
        "plots": {plot.name: _plotted(plot) for plot in plots if plot.svgs},
        "runs": [run.name for run in runs],
        "reflection": REFLECTION_PATTERN.replace(" ", r"\s+"),
        "total": samples.total,
    }
    recipe = recipe_facts(runs)
    environment = Environment(
        loader=PackageLoader("mini_r1.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
        # A number and its percent sign stay on one line; markup stays as it was hashed.
        finalize=lambda value: value.replace(" %", "\u00a0%") if type(value) is str else value,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        summaries=summaries,
        runs=runs,
        places=[text(str(run.run.path), 1_000) for run in runs],
        plots=plots,
        groups=GROUPS,
        original=PUBLISHED,
        compared_with_original=[summary for summary in summaries if has_original_task(summary.run)],
        recipe=recipe,
        compared=compare_tiles(summaries),
        differing=[fact for fact in recipe if fact.differs],
        shown_keys=SHOWN_KEYS,
        provenance=provenance_facts(runs),
        tables=[tables(run) for run in runs],
        samples=samples,
        css=Markup(css),
        script=Markup(script),
        css_hash=_hash(css),
        script_hash=_hash(script),
        data=htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
        packed=Markup(packed),
        version=mini_r1.__version__,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _plotted(plot: Plot) -> dict[str, Any]:
    """Return what page.js needs to show the values of a plot, and to write them as CSV."""
    curves, side = (
        [
            {"run": c.run, "label": c.label, "colour": c.colour, "x": c.points[0], "y": c.points[1], "ci": c.intervals}
            for c in group
            if c.points[0]
        ]
        for group in (plot.curves, plot.side)
    )
    return {"percent": plot.percent, "curves": curves, "side": side, "steps": plot.x.startswith("optimizer")}


def _theme_variables() -> str:
    """Return the two themes as CSS variables: the system's, until the reader chooses one."""
    light, dark = (
        "".join(f"--{role}:{colour};" for role, colour in colours.items()) for colours in (drawing.LIGHT, drawing.DARK)
    )
    return (  # print is always light
        f":root{{color-scheme:light;{light}}}\n@media screen{{\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n}}\n"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
