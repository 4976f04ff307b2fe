"""The page in a real headless browser: nothing complains, filters, search and keyboard work, hostile text stays text.

Every test that opens a page also fails if the browser's console is not empty or the page sends a request
(`conftest.opened`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mini_r1.run.files import write_jsonl
from mini_r1.run.reader import completions_file, read_completions

from tests.report.conftest import Opened
from tests.report.made_run import HOSTILE, make_run

Open = Callable[..., Opened]
pytestmark = [pytest.mark.real, pytest.mark.usefixtures("drawn")]


def number(text: str) -> int:
    """The first number of a line such as `1,234 of 20,000`."""
    found = re.search(r"[\d,]+", text)
    assert found, text
    return int(found.group().replace(",", ""))


def until_counted(page: Opened, before: str) -> int:
    """The count once it is another one."""
    page.until(f"document.querySelector('#count').textContent !== {json.dumps(before)}")
    return number(page.count())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_the_screen_in_both_themes(page: Path, opened: Open, theme: str) -> None:
    there = opened(page, theme=theme)
    for width, height in ((1366, 860), (800, 1100), (360, 780)):
        there.tab.set_viewport_size({"width": width, "height": height})
        assert there.tab.evaluate("document.documentElement.scrollWidth") <= width
    lightness = "(() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0))()"
    before = there.tab.evaluate(lightness)
    assert (before < 200) == (theme == "dark")
    there.tab.keyboard.press("d")
    assert (there.tab.evaluate(lightness) < 200) == (theme == "light")


def test_the_first_wait_that_succeeded_is_one_click_away(page: Path, opened: Open) -> None:
    there = opened(page)
    there.tab.click("#aha")
    assert "wait" in there.tab.inner_text("#aha")
    assert "wait" in there.tab.inner_text("#reader .think mark").lower()
    assert "is the target ✓" in there.reader()
    steps = there.tab.eval_on_selector_all(".row .at", "all => all.map(at => parseInt(at.textContent.slice(5)))")
    assert steps == sorted(steps)


def test_on_a_phone_it_is_still_one_click(page: Path, opened: Open) -> None:
    there = opened(page, width=360, height=780)
    there.tab.click("#aha")
    there.until("(y => y >= 0 && y < 400)(document.querySelector('#reader').getBoundingClientRect().top)")
    assert "is the target ✓" in there.reader()


CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => channels(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0.99) return colour;
    }
  };
  const found = {};
  for (const node of document.querySelectorAll("body *")) {
    const texts = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    if (!texts.length || node.closest("script, noscript, button:disabled") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), pair = [style.color, behind(node)];
    if (node instanceof SVGElement) pair[0] = style.fill;
    const [low, high] = pair.map(light).sort((a, b) => a - b);
    found[node.tagName + " " + texts[0].data.trim().slice(0, 30)] = (high + 0.05) / (low + 0.05);
  }
  return found;
}"""
"""WCAG 2.2's contrast of every text that is seen, but disabled buttons'."""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_enough_contrast(page: Path, opened: Open, theme: str) -> None:
    there = opened(page, theme=theme)
    there.tab.select_option("#f-right", "0")
    for key in ("t", "c"):
        there.tab.keyboard.press(key)
        contrasts = there.tab.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert {text: value for text, value in contrasts.items() if value < 4.5} == {}


def test_a_print_is_light_and_has_everything_but_the_samples(page: Path, opened: Open) -> None:
    there = opened(page, theme="dark")
    there.tab.emulate_media(media="print")
    assert there.tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')") == "#20242a"
    there.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    for part, seen in ((".missing", True), ("#about table.recipe", True), ("#samples", False), (".top", False)):
        assert there.tab.is_visible(part) == seen, part


def test_20_000_samples_are_listed_filtered_and_searched(large_page: Path, opened: Open) -> None:
    there = opened(large_page)
    tab = there.tab
    assert number(there.count()) == 20_000
    assert tab.eval_on_selector_all(".row", "all => all.length") < 60, "only visible rows are in the page"
    tab.eval_on_selector("#list", "list => { list.scrollTop = list.scrollHeight }")
    there.until("document.querySelector('.row:last-child').ariaPosInSet === '20000'")

    tab.select_option("#f-right", "1")
    right = until_counted(there, "20,000 of 20,000")
    assert 0 < right < 20_000
    before = there.count()
    tab.fill("#f-step0", "300")
    late = until_counted(there, before)
    assert 0 < late < right
    assert int(tab.inner_text(".row .at").removeprefix("step ")) >= 300
    tab.fill("#f-len0", "100")
    tab.wait_for_timeout(50)
    long = number(there.count())
    tab.select_option("#f-style", "2")
    tab.wait_for_timeout(50)
    assert number(there.count()) <= long < late
    tab.click("#filters [type=reset]")
    there.until("document.querySelector('#count').textContent.startsWith('20,000 of')")

    tab.keyboard.press("/")
    tab.keyboard.type("let me TRY")
    found = until_counted(there, "20,000 of 20,000")
    assert 0 < found < 20_000
    tab.keyboard.press("Escape")
    tab.keyboard.press("t")
    assert tab.inner_text("#reader mark.found").lower() == "let me try"
    tab.keyboard.press("x")
    there.until("document.querySelector('#count').textContent.startsWith('20,000 of')")
    tab.select_option("#f-reason", index=2)
    tab.wait_for_timeout(50)
    assert 0 < number(there.count()) < 20_000
    tab.fill("#q", "no completion says this")
    there.until("document.querySelector('#reader').textContent.startsWith('No completion')")
    assert number(there.count()) == 0


def test_the_keyboard_moves_through_samples_and_one_problem(page: Path, opened: Open) -> None:
    there = opened(page)
    tab = there.tab
    first = there.reader()
    tab.keyboard.press("j")
    second = there.reader()
    assert second != first
    tab.keyboard.press("k")
    assert there.reader() == first
    tab.focus("#list")
    tab.keyboard.press("End")
    assert "step 60" in there.reader()
    problem = tab.inner_text("#reader .problem")
    last = there.reader()
    tab.keyboard.press("[")
    assert tab.inner_text("#reader .problem") == problem
    assert there.reader() != last
    tab.keyboard.press("]")
    assert there.reader() == last
    tab.keyboard.press("c")
    assert tab.inner_text("#compare .problem") == problem
    cards = tab.eval_on_selector_all("#compare .card h3", "all => all.map(h => parseInt(h.textContent.slice(5)))")
    assert len(cards) > 1
    assert cards == sorted(cards)
    assert not tab.is_visible("#compare .card pre"), "thinking is folded"
    tab.click("#compare .card summary")
    assert tab.is_visible("#compare .card pre")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#compare")


def test_a_held_out_problem_has_its_answers_of_every_snapshot_side_by_side(tmp_path: Path, opened: Open) -> None:
    from mini_r1.report.build import build_report

    run = make_run(tmp_path / "run", steps=4, evaluate_every=2)
    first = next(read_completions(run))
    # As an evaluation writes them: no reward, and a problem that training never met.
    kept = {key: value for key, value in first.items() if key not in ("prompt", "reward", "advantage")}
    kept |= {"nums": [91, 92], "target": 8372}
    for step in (0, 2, 4):
        answers = [{**kept, "step": step, "kind": kind} for kind in ("greedy", "sampled", "sampled")]
        write_jsonl(completions_file(run.evaluation / f"step-{step}.json"), answers)
    there = opened(build_report([run.path], tmp_path / "report.html").path)
    there.tab.select_option("#f-kind", label="held out, greedy")
    there.until("document.querySelector('#count').textContent.startsWith('3 of')")
    assert "91, 92 → 8372" in there.reader()
    assert "reward" not in there.tab.inner_text("#reader .facts")
    there.tab.keyboard.press("c")
    assert there.tab.inner_text("#compare header .note").split(", ") == ["3 steps", "9 answers"]
    cards = there.tab.eval_on_selector_all("#compare .card h3", "all => all.map(h => h.textContent)")
    assert cards == ["Step 0", "Step 0", "Step 2", "Step 2", "Step 4", "Step 4"]
    notes = there.tab.eval_on_selector_all("#compare .card header .note", "all => all.map(n => n.textContent)")
    assert notes[0] == "held out, greedy"
    assert notes[1].endswith("of 2 right, held out, sampled")


def test_an_answer_is_checked_term_by_term(page: Path, opened: Open) -> None:
    there = opened(page)
    there.tab.select_option("#f-right", "1")
    there.tab.wait_for_selector("#reader .check .ok")
    steps = there.tab.eval_on_selector_all("#reader .check li", "all => all.map(li => li.textContent)")
    numbers = there.tab.inner_text("#reader .problem").split(" → ")[0].split(", ")
    assert len(steps) == len(numbers) - 1
    assert steps[-1].endswith("= " + there.tab.inner_text("#reader .problem").split(" → ")[1])
    chips = there.tab.eval_on_selector_all("#reader .chip", "all => all.map(c => c.textContent)")
    assert sorted(chips) == sorted(f"{n} ✓" for n in numbers)


def test_a_plot_shows_values_and_links_to_the_samples_of_a_step(page: Path, opened: Open) -> None:
    there = opened(page)
    canvas = there.tab.query_selector("#plot-tries .canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover()
    tip = there.tab.inner_text("#plot-tries .tip")
    assert re.match(r"step \d+\ntries: [\d.]+$", tip), tip
    canvas.click()
    step = tip.split("\n")[0]
    there.until(f"document.querySelector('.row .at').textContent === {json.dumps(step)}")


def test_a_tap_on_a_plot_does_not_scroll_away(page: Path, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]")
    tab.query_selector("#plot-tries .canvas").scroll_into_view_if_needed()
    tab.tap("#plot-tries .canvas")
    assert tab.input_value("#f-step0") == ""
    context.close()


def test_hostile_completions_are_text(page: Path, opened: Open) -> None:
    there = opened(page)
    all_of_them = there.count()
    there.tab.keyboard.press("t")

    def search(text: str, count: str) -> None:
        there.tab.evaluate("text => { const q = document.querySelector('#q'); q.value = text; }", text)
        there.tab.dispatch_event("#q", "input", {"bubbles": True})
        there.until(f"document.querySelector('#count').textContent.startsWith({json.dumps(count)})")

    for name, text in HOSTILE.items():
        search(text, "1 of")
        if "</think>" not in text:
            visible = "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text)
            assert there.tab.text_content("#reader .think pre") == visible, name
        assert there.tab.evaluate("window.hacked") is None, name
        markup = "document.querySelectorAll('#samples img, #samples script, #samples style').length"
        assert there.tab.evaluate(markup) == 0, name
        search("", all_of_them)


def test_a_line_of_a_megabyte_is_cut_with_a_note(page: Path, opened: Open) -> None:
    there = opened(page)
    there.tab.fill("#q", "y" * 40)
    there.until("document.querySelector('#count').textContent.startsWith('1 of')")
    assert "980,000 characters were left out" in there.reader()


def test_several_runs_are_compared(run_path: Path, opened: Open, tmp_path: Path) -> None:
    from mini_r1.report.build import build_report

    make_run(tmp_path / "second", steps=20, overrides=("learning_rate=1e-6",), seed=2)
    made = build_report([run_path, tmp_path / "second"], tmp_path / "both.html")
    there = opened(made.path)
    whole = number(there.count())
    before = there.count()
    there.tab.select_option("#f-run", "1")
    assert until_counted(there, before) == 20 * 24 < whole
    assert "second, step" in there.reader()
    for shown in (".tiles", "table.compared"):
        bottom = there.tab.evaluate(f"document.querySelector('{shown}').getBoundingClientRect().bottom")
        assert bottom < 860, "it is seen without scrolling"
    assert there.tab.inner_text("table.compared tr:has-text('learning_rate')").split() == [
        "learning_rate",
        "5e-07",
        "1e-06",
    ]
    tile = there.tab.inner_text(".tiles div:has-text('Training success')").split("\n")
    assert len([line for line in tile if line.endswith("%")]) == 2
    differences = there.tab.inner_text("#about")
    assert "learning_rate" in differences
    assert "1e-06" in differences
    assert "num_generations\t" not in differences.split("Recipe:")[0]


OVERLAPS = """() => [...document.querySelectorAll(".canvas svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const shown = frame.width ? texts.filter(([, box]) => box.width) : [];
  return shown.flatMap(([name, a], i) => [
    ...(a.right > frame.right + 1 || a.left < frame.left - 1 ? [`${name} is cut off`] : []),
    ...shown.slice(i + 1).filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > -2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([other]) => `${name} touches ${other}`),
  ]);
})"""


@pytest.mark.parametrize("width", [360, *(pytest.param(width, marks=pytest.mark.exhaustive) for width in (420, 1280))])
def test_no_text_of_a_plot_overlaps_another(opened: Open, tmp_path: Path, width: int) -> None:
    from mini_r1.report.build import build_report

    short = make_run(tmp_path / "short", steps=20, evaluate_every=10)  # the original is in a picture at its side
    long = make_run(tmp_path / "long-with-a-long-name", steps=1234, per_step=1, evaluate_every=500, restart_at=700)
    for runs in ([short.path], [long.path], [short.path, long.path]):
        made = build_report(runs, tmp_path / "page.html", limit=10, price=123_456.0)
        assert opened(made.path, width=width, height=900).tab.evaluate(OVERLAPS) == []


def test_what_is_plotted_is_downloaded_as_csv(run_path: Path, opened: Open, tmp_path: Path) -> None:
    from mini_r1.report.build import build_report

    make_run(tmp_path / '=a, "b"', steps=20, evaluate_every=10)
    made = build_report([run_path, tmp_path / '=a, "b"'], tmp_path / "both.html", csv=tmp_path / "plotted.csv")
    there = opened(made.path)
    with there.tab.expect_download() as waiting:
        there.tab.click("#csv")

    def read(path: Path) -> list[list[object]]:
        rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
        return [rows[0], *([*row[:3], *(float(value) if value else None for value in row[3:])] for row in rows[1:])]

    assert waiting.value.suggested_filename == "mini-r1-report.csv"
    assert read(Path(waiting.value.path())) == read(tmp_path / "plotted.csv")


def test_a_run_without_anything_still_has_a_page(opened: Open, tmp_path: Path) -> None:
    from mini_r1.report.build import build_report

    (tmp_path / "empty" / "attempts" / "1").mkdir(parents=True)
    there = opened(build_report([tmp_path / "empty"], tmp_path / "empty.html").path)
    assert "no completions yet" in there.reader()
    assert "run.json cannot be read" in there.tab.inner_text(".missing")
