"""Pages of synthetic runs, and a real browser to look at them."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lightning_topo.outputs.page import write_report
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.synthetic import demo_run, empty_run, hostile_run, large_run, one_step_run


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return demo_run(tmp_path_factory.mktemp("demo") / "topology")


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("control") / "topology"
    return demo_run(folder, groups=("net.0", "other"), edge_at=None, n_steps=400)


@pytest.fixture(scope="session")
def breakdown(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("breakdown") / "topology"
    return demo_run(folder, n_steps=600, edge_at=None, breakdown_at=300, every_capture=50)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return hostile_run(tmp_path_factory.mktemp("hostile") / "topology")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return empty_run(tmp_path_factory.mktemp("empty") / "topology")


@pytest.fixture(scope="session")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return one_step_run(tmp_path_factory.mktemp("one_step") / "topology")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return large_run(tmp_path_factory.mktemp("large") / "topology", n_groups=50, n_captures=30)


class Browser:
    """Opens pages in one Chromium; what goes wrong in them is kept in `errors`."""

    def __init__(self, playwright, folder: Path, stack: ExitStack) -> None:
        self._playwright, self._folder, self._stack = playwright, folder, stack
        self._contexts: dict[tuple[int, str], object] = {}

    def open(self, records: list[RunRecord], width: int = 1280, theme: str = "light"):
        """The page of the records, all charts drawn."""
        path = self._folder / f"{'-'.join(r.run_id for r in records)}.html"
        if not path.exists():
            write_report(records, path)
        page = self._context(width, theme).new_page()
        page.errors = []
        page.on("console", lambda message: page.errors.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.errors.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        return page

    def _context(self, width: int, theme: str):
        if (width, theme) not in self._contexts:
            context = self._playwright.chromium.launch_persistent_context(
                self._folder / f"profile-{width}-{theme}",
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
                viewport={"width": width, "height": 900},
                color_scheme=theme,
            )
            self._stack.callback(context.close)
            self._contexts[width, theme] = context
        return self._contexts[width, theme]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if os.environ.get("LIGHTNING_TOPO_BROWSER") != "required":  # CI sets it, so that nothing is skipped unseen
        if shutil.which("chromium") is None:
            pytest.skip("needs Chromium on the PATH")
        pytest.importorskip("playwright.sync_api")
    from playwright import sync_api

    with ExitStack() as stack:
        playwright = stack.enter_context(sync_api.sync_playwright())
        yield Browser(playwright, tmp_path_factory.mktemp("browser"), stack)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """The text of a page of some records."""
    return lambda *records: write_report(records, tmp_path / "report.html").read_text(encoding="utf-8")
