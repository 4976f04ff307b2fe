"""Made-up runs, their page, and a real headless browser to open it in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.made_run import HOSTILE, make_run

PATIENCE_S = 120
"""For a page to do something, on cores that many tests share."""
LONG = "y" * 1_000_000
"""A completion of a megabyte on one line."""


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps with a restart, evaluations, and hostile completions in its first step."""
    path = tmp_path_factory.mktemp("report") / "first"
    make_run(path, steps=60, restart_at=30, evaluate_every=20, extra=(*HOSTILE.values(), LONG))
    return path


@pytest.fixture(scope="session")
def drawn() -> None:
    """What draws pages is installed here."""
    for name in ("jinja2", "matplotlib"):
        pytest.importorskip(name, reason="the extra 'report' is not installed")


@pytest.fixture(scope="session")
def page(drawn: None, run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `run_path`."""
    from mini_r1.report.build import build_report

    return build_report([run_path], tmp_path_factory.mktemp("page") / "report.html").path


@pytest.fixture(scope="session")
def large_page(drawn: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with 20,000 completions."""
    from mini_r1.report.build import build_report

    folder = tmp_path_factory.mktemp("large")
    make_run(folder / "run", steps=400, per_step=51)
    made = build_report([folder / "run"], folder / "report.html")
    assert made.shown == 20_000
    return made.path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium that is installed here."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make install`")
    programs = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((found for name in programs if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium: `apt-get install chromium` (Debian)")
    with playwright.sync_playwright() as running:
        # Without its sandbox: the user may be root, and the page is the kit's own.
        started = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """An opened page, and everything it complained about or asked a network for."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.complaints: list[str] = []
        tab.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        tab.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(f"request: {request.url}")

    def until(self, expression: str) -> None:
        """Wait until it is true; Playwright's own way is an eval, which the page's policy refuses."""
        end = time.monotonic() + PATIENCE_S
        while not self.tab.evaluate(expression):
            assert time.monotonic() < end, f"never became true: {expression}"
            self.tab.wait_for_timeout(20)

    def count(self) -> str:
        """The line above the list."""
        return str(self.tab.inner_text("#count"))

    def reader(self) -> str:
        """What is read at the right."""
        return str(self.tab.inner_text("#reader"))


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open a file as a page; no complaint is left unnoticed."""
    contexts: list[Any] = []
    pages: list[Opened] = []

    def go(path: Path, *, theme: str = "light", width: int = 1366, height: int = 860) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        page = Opened(context.new_page())
        pages.append(page)
        page.tab.goto(path.as_uri())
        page.tab.wait_for_selector("html[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert [complaint for page in pages for complaint in page.complaints] == []
