"""The page and the Markdown as files: nothing of a run can become markup, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jinja2.utils import htmlsafe_json_dumps
from mini_r1.cli.command_tools import file_errors
from mini_r1.console import as_markdown
from mini_r1.errors import ExitCode, KitError
from mini_r1.report import drawing, markdown, plots
from mini_r1.report.build import MAX_BYTES, build_report
from mini_r1.report.plots import LABEL, Curve, Plot, make_plots, shorten_names
from mini_r1.report.plotted import plotted_csv
from mini_r1.report.summary import compare_tiles, summarise
from mini_r1.run import reader
from mini_r1.run.files import write_json
from mini_r1.run.reader import read_run
from mini_r1.run.run_dir import RunDir

from tests.report.made_run import HOSTILE, make_run
from tests.small_disk import fill, small_disk

Kit = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def few_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the plots are left out: drawing them takes seconds, and the test is about something else."""
    monkeypatch.setattr(plots, "FIGURES", plots.FIGURES[:1])


def axes_of(svg: str) -> dict[str, list[float]]:
    return json.loads(ElementTree.fromstring(svg).attrib["data-place"])


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.inside.append(data)


def test_the_policy_allows_the_pages_script_and_style_only(page: Path) -> None:
    text = page.read_text("utf-8")
    elements = Elements(text)
    policy = next(a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    hashes = {
        "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode("ascii")
        for part in re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
    }
    assert set(re.findall(r"sha256-[A-Za-z0-9+/=]+", policy)) == hashes
    assert len(hashes) == 2


def test_nothing_is_loaded_and_nothing_is_inline(page: Path) -> None:
    elements = Elements(page.read_text("utf-8")).found
    assert {"script", "style", "svg"} <= {tag for tag, _ in elements}
    for tag, attributes in elements:
        assert tag not in ("img", "iframe", "object", "embed", "audio", "video"), tag
        for name, value in attributes.items():
            assert name != "style", f"an inline style on {tag} would be refused"
            assert not name.startswith("on"), f"{tag} has a handler"
            if name in ("src", "href", "xlink:href", "action"):
                assert value is not None
                assert value.startswith(("#", "data:,")), value


def test_every_name_on_the_page_is_there_once(page: Path) -> None:
    names = [a["id"] for _, a in Elements(page.read_text("utf-8")).found if "id" in a]
    assert sorted(names) == sorted(set(names))


def test_hostile_text_of_a_run_is_escaped_everywhere(tmp_path: Path) -> None:
    attack = "<script>window.hacked = 1</script>"
    run = make_run(tmp_path / attack.replace("/", "-"), steps=3, evaluate_every=2, extra=tuple(HOSTILE.values()))
    record = run.read_record()
    record["attempts"][0] |= {
        "host": attack,
        "devices": [attack],
        "versions": {attack: attack},
        "command": [attack] * 2,
    }
    write_json(run.run_file, record)
    write_json(run.state_file, {"state": attack, "step": 3, "reason": attack + "\x1b[31m\u2028"})
    with (run.attempts / "1" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "trouble": {"kl": attack}}) + "\n")
    made = build_report([run.path], tmp_path / "page.html", markdown=tmp_path / "md")
    text = made.path.read_text("utf-8")
    assert [tag for tag, _ in Elements(text).found].count("script") == 3
    assert "window.hacked = 1</script>" not in text
    assert "\x1b" not in text
    assert "\u2028" not in text
    for file in made.markdown:
        assert "<script" not in file.read_text("utf-8")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_inside_a_page_cannot_end_its_element(text: str) -> None:
    packed = str(htmlsafe_json_dumps({"text": text}))
    assert not set("<>&\u2028\u2029") & set(packed)
    assert packed.isascii()
    assert json.loads(packed) == {"text": text}


@pytest.mark.usefixtures("few_plots")
def test_a_page_stays_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", steps=20, per_step=30)
    monkeypatch.setattr("mini_r1.report.build.PACKED_BYTES", 8_000)
    made = build_report([run.path], tmp_path / "page.html")
    assert 0 < made.shown < made.total == 600
    assert made.size < MAX_BYTES
    packed = re.search(r'id="packed">([^<]*)<', made.path.read_text("utf-8"))
    assert packed
    assert len(packed.group(1)) <= 8_000


@pytest.mark.usefixtures("few_plots")
def test_a_report_is_made_while_a_run_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, state="running")
    with (run.attempts / "1" / "completions.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "nums": [1, 2], "comp')
    made = build_report([run.path])
    assert made.path == run.path / "report.html"
    assert made.shown == 72


@pytest.mark.usefixtures("few_plots")
def test_runs_get_different_names_and_are_limited(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / folder / "run", steps=2).path for folder in "ab"]
    made = build_report(paths, tmp_path / "page.html")
    assert [s.run.name for s in made.summaries] == ["a/run", "b/run"]
    with pytest.raises(KitError, match="named twice"):
        build_report([paths[0], paths[0]])
    with pytest.raises(KitError, match="at most 6"):
        build_report([tmp_path / str(i) for i in range(7)])


@pytest.mark.usefixtures("few_plots")
def test_nothing_but_a_report_is_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2).path
    (tmp_path / "a folder").mkdir()
    (tmp_path / "note.html").write_text("<!doctype html><title>mine</title>")
    os.mkfifo(tmp_path / "pipe")
    recipe = (run / "recipe.yaml").read_bytes()
    for target, words in (
        (run / "recipe.yaml", "exists and is not a file of"),
        (tmp_path / "note.html", "exists and is not a file of"),
        (tmp_path / "a folder", "is not a regular file"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "nowhere" / "page.html", "there is no folder"),
        (Path(), "is not a regular file"),
    ):
        with pytest.raises(KitError, match=words) as said:
            build_report([run], target)
        assert ".tmp" not in said.value.message
    assert (run / "recipe.yaml").read_bytes() == recipe
    with pytest.raises(KitError, match="note.html: File exists"), file_errors():
        build_report([run], markdown=tmp_path / "note.html")
    (tmp_path / "empty.html").touch()
    for _ in range(2):
        assert build_report([run], tmp_path / "empty.html").size > 10_000


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0])
def test_a_price_is_a_number(run_path: Path, price: float) -> None:
    with pytest.raises(KitError, match="a GPU cannot cost"):
        build_report([run_path], price=price)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: RunDir) -> list[object]:
        raise PermissionError(13, "Permission denied", str(run.path / "attempts/1/metrics.jsonl"))

    run = make_run(tmp_path / "run", steps=2).path
    monkeypatch.setattr(reader, "read_metrics", refused)
    with pytest.raises(KitError, match=r"attempts/1/metrics.jsonl: Permission denied"), file_errors():
        build_report([run])


@pytest.mark.usefixtures("few_plots")
def test_a_full_disk_is_retried(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2).path
    with small_disk(tmp_path / "disk", "4m") as disk:
        (disk / "folder").mkdir()
        fill(disk, 0)
        for out, images in ((disk / "page.html", None), (tmp_path / "page.html", disk / "folder")):
            with (
                pytest.raises(KitError, match=f"cannot write {disk}/.*: No space left on device") as caught,
                file_errors(),
            ):
                build_report([run], out, markdown=images)
            assert caught.value.exit_code == ExitCode.RETRY
        assert [path.name for path in disk.rglob("*") if path.is_file()] == ["filler"]


def test_plots_meet_the_pages_policy(run_path: Path) -> None:
    made = make_plots([read_run(run_path)])
    empty = [plot.name for plot in made if plot.empty]
    assert empty == []
    for plot in made:
        svg = drawing.draw(plot, drawing.VARIABLES, drawing.SMALL)
        root = ElementTree.fromstring(svg)
        for element in root.iter():
            assert "style" not in element.attrib
            assert element.tag.rpartition("}")[2] not in ("style", "script", "image", "metadata")
        for stand_in in drawing.ROLES.values():
            assert stand_in not in svg, f"a colour of {plot.name} has no role"
        assert "#000000" not in svg
        assert axes_of(svg)["x"][0] <= 0 < axes_of(svg)["x"][1]


def test_a_stack_is_not_cut_off() -> None:
    steps = [1.0, 2.0]
    curves = [Curve(name, (steps, [10.0, 20.0]), "a", 0) for name in ("one", "two", "three")]
    svg = drawing.draw(Plot("s", "S", "", curves, stacked=True), drawing.LIGHT, drawing.SMALL)
    assert axes_of(svg)["y"][1] > 60


def test_long_names_differ_in_a_legend_that_takes_no_space_from_the_plot() -> None:
    assert shorten_names(["a", "b"]) == ["a", "b"]
    names = [f"the-same-beginning-{i}-and-the-same-end" for i in range(6)]
    short = shorten_names([*names, "another"])
    assert len(set(short)) == 7
    assert max(map(len, [*short, *shorten_names([name + "x" * i for i, name in enumerate(names)])])) <= LABEL
    drawn = []
    for used in (["a"], short[:6]):
        curves = [Curve(name, ([1.0, 2.0], [1.0, 2.0]), "a", at) for at, name in enumerate(used)]
        svg = drawing.draw(Plot("s", "S", "", curves), drawing.LIGHT, drawing.SMALL)
        drawn.append(axes_of(svg)["box"][3] - axes_of(svg)["box"][1])
        right = [float(at) for at in re.findall(r'<text [^>]*transform="translate\(([\d.]+)', svg)]
        assert max(right, default=0.0) < 72 * drawing.SMALL[0]
    assert drawn[1] > 0.75 * drawn[0]


def test_gpu_hours_grow_with_every_attempt_and_have_a_cost(run_path: Path) -> None:
    run = read_run(run_path)
    plot = next(plot for plot in make_plots([run], 2.5) if plot.name == "gpu-hours")
    steps, hours = plot.curves[0].points
    assert steps == [*map(float, range(1, 35)), *map(float, range(30, 61))]
    assert hours == sorted(hours)
    assert hours[-1] == pytest.approx(summarise(run, 2.5).gpu_hours)
    svg = drawing.draw(plot, drawing.LIGHT, drawing.SMALL)
    assert "cost at 2.5 each" in plot.title
    assert ">60<" in svg, "a right axis in money"


def test_a_cpu_has_no_gpu_hours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    record = run.read_record()
    record["attempts"][0].update(devices=["cpu x 2 (1 threads)"], vllm_device=None, workers=1)
    write_json(run.run_file, record)
    assert "gpu-hours" not in [plot.name for plot in make_plots([read_run(run.path)], 2.5)]


def test_the_originals_curve_is_on_the_axis_of_a_long_run_only(run_path: Path, tmp_path: Path) -> None:
    short = make_plots([read_run(run_path)])[0]
    assert [curve.colour for curve in short.side] == ["original"]
    long = make_run(tmp_path / "long", steps=3, overrides=("max_steps=450",))
    success = make_plots([read_run(long.path)])[0]
    assert success.side == []
    assert "original" in [curve.colour for curve in success.curves]


def test_the_markdown_shows_plots_for_both_themes(run_path: Path, tmp_path: Path) -> None:
    made = build_report([run_path], tmp_path / "page.html", markdown=tmp_path / "md")
    text = made.markdown[0].read_text("utf-8")
    shown = set(re.findall(r'(?:src|srcset)="([^"]+)"', text))
    assert shown == {path.name for path in made.markdown[1:]}
    assert {"success-light.svg", "success-dark.svg", "tries-light.svg"} <= shown
    for path in made.markdown[1:]:
        assert "var(" not in path.read_text("utf-8"), "not every viewer knows CSS variables"
    assert "| 60 | 500 | " in text


def test_csv_has_every_point_that_is_plotted(run_path: Path, tmp_path: Path) -> None:
    table = tmp_path / "plotted.csv"
    for _ in range(2):  # it replaces its own file
        assert build_report([run_path], tmp_path / "page.html", csv=table, limit=10).csv == table
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    run = read_run(run_path)
    for plot, figure in (("grad-norm", "grad_norm"), ("learning-rate", "learning_rate"), ("reward", "reward")):
        found = [(float(row["x"]), float(row["value"])) for row in rows if row["plot"] == plot]
        assert found == [*zip(*run.points(figure), strict=True)]
    held_out = [row for row in rows if row["curve"] == "held out, sampled"]
    assert [row["x"] for row in held_out] == ["0.0", "20.0", "40.0", "60.0"]
    assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in held_out)
    assert {row["run"] for row in rows} == {"first", ""}
    assert {row["plot"] for row in rows} == {plot.name for plot in make_plots([run])}


@pytest.mark.parametrize(("name", "shown"), [("=1+1", "'=1+1"), ("-run", "'-run"), ('a "b", c', 'a "b", c')])
def test_a_name_in_csv_is_no_formula(name: str, shown: str) -> None:
    curve = Curve(f"{name}: training", ([1.0], [-0.5]), "a", 0)
    rows = list(csv.reader(io.StringIO(plotted_csv([Plot("reward", "", "", [curve])], [name]), newline="")))
    assert rows[1] == ["reward", shown, f"{shown}: training", "1.0", "-0.5", "", ""]


@pytest.mark.usefixtures("few_plots")
def test_csv_replaces_no_other_file(run_path: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n")
    for target in (mine, tmp_path / "nowhere" / "x.csv", tmp_path, run_path / "recipe.yaml"):
        with pytest.raises(KitError, match="choose another file with --csv"):
            build_report([run_path], tmp_path / "page.html", csv=target)
    assert mine.read_text() == "a,b\n"


def test_two_runs_have_their_figures_next_to_each_other(run_path: Path, tmp_path: Path) -> None:
    cpu = make_run(tmp_path / "cpu", steps=5, overrides=("learning_rate=1e-6",))
    record = cpu.read_record()
    record["attempts"][0].update(devices=["cpu x 2 (1 threads)"], vllm_device=None, workers=1)
    write_json(cpu.run_file, record)
    compared = dict(compare_tiles([summarise(read_run(path), None) for path in (run_path, cpu.path)]))
    assert compared["Held-out success"] == ["20 %", "–"]
    assert compared["GPU-hours"][1] == "–"
    made = build_report([run_path, cpu.path], tmp_path / "page.html", markdown=tmp_path / "md", limit=10)
    text = made.path.read_text("utf-8")
    assert text.index("learning_rate") < text.index('id="plot-success"')
    assert "| Held-out success | 20 % | – |" in made.markdown[0].read_text("utf-8")


def test_text_in_markdown_stays_text() -> None:
    assert as_markdown("a_b*c`<i>|\n# [x](y)\x1b") == "a\\_b\\*c\\`&lt;i&gt;\\| \\# \\[x\\](y)\\\\x1b"
    assert markdown.table(["a", "b"], [["**<b>**", "1"]], strong=1)[2] == "| \\*\\*&lt;b&gt;\\*\\* | **1** |"


@pytest.mark.usefixtures("few_plots")
def test_a_name_of_any_bytes_is_shown_on_one_line(run_path: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"bad\xff\x1b[31m\n# <b>x")
    shutil.copytree(run_path, path)
    made = build_report([path], tmp_path / "page.html", markdown=tmp_path / "md", limit=10)
    assert "bad\\udcff\\x1b[31m # &lt;b&gt;x</h1>" in made.path.read_text("utf-8")
    assert "\x1b" not in made.path.read_text("utf-8")
    head = made.markdown[0].read_text("utf-8").split("\n")
    assert head[0].startswith("# bad")
    assert head[1] == ""
    assert "<b>" not in head[0]


def test_the_command_prints_what_it_wrote(run_path: Path, tmp_path: Path, mini_r1: Kit) -> None:
    page = tmp_path / "page.html"
    done = mini_r1("report", run_path, "--out", page, "--price-per-gpu-hour", "2", "--samples", "100", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["report"] == str(page)
    assert said["bytes"] == page.stat().st_size
    assert said["samples"] == 100
    assert said["runs"][0]["held_out"]["problems"] == 500
    assert said["runs"][0]["cost"] > 0
    done = mini_r1("report", tmp_path)
    assert done.returncode == 78
    assert "holds no run" in done.stderr


def test_a_report_needs_no_torch() -> None:
    code = "import sys, mini_r1.report.build; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
