"""What the page of a large run weighs, how long it takes to write, and when a browser first paints it.

    python -m benchmarks.report [--groups 50] [--captures 500] [--steps 100000]

The run is synthetic. Painting needs Chromium on the PATH; it is the browser's own mark, `first-contentful-paint`.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page import write_report
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.synthetic import large_run


def first_paints(page: Path, width: int, repeats: int = 5) -> list[float]:
    """Milliseconds from opening the page to its first contents, each time in a new tab."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        found = []
        for _ in range(repeats):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-drawn]", state="attached")
            found.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            tab.close()
        browser.close()
    return found


def lengthened(record: RunRecord, n_steps: int) -> RunRecord:
    """The record with a loss for each of so many steps, and r and coverage of every group at each hundredth."""
    chance = random.Random(0)
    lines = [Measurement(1, 0, "training", "", {"learning_rate": 1e-3})]
    for step in range(1, n_steps + 1):
        lines.append(Measurement(step, 0, "training", "", {"loss": 2.0 * 0.99995**step + 0.01 * chance.random()}))
        for group in record.groups if step % 100 == 0 else ():
            lines.append(Measurement(step, 0, "distortion", group, {"critical_ratio": 0.1 * chance.random()}))
            values = {"from": step - 100.0, "state": 2.0, "bound": 0.2 + 0.6 * chance.random()}
            lines.append(Measurement(step, 0, "coverage", group, values))
    return replace(record, measurements=tuple(sorted((*record.measurements, *lines), key=lambda m: m.step)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--captures", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = large_run(Path(folder) / "topology", arguments.groups, arguments.captures)
        record = lengthened(record, arguments.steps)
        began = time.perf_counter()
        page = write_report([record], Path(folder) / "report.html")
        seconds = time.perf_counter() - began
        print("| what | measured |\n|---|---|")
        print(
            f"| {arguments.groups} groups, {arguments.captures} captures, {arguments.steps:,} steps "
            f"| {page.stat().st_size / 1e6:.2f} MB |"
        )
        print(f"| written in | {seconds:.1f} s |")
        for width in (1280, 390) if shutil.which("chromium") else ():
            paints = first_paints(page, width)
            print(f"| first paint, {width} px | {statistics.median(paints):.0f} ms (worst of 5: {max(paints):.0f}) |")


if __name__ == "__main__":
    main()
