"""What the page of a large run weighs, how long it takes to write, and when a browser first paints it.

    python -m benchmarks.report [--groups 50] [--captures 500]

The run is synthetic. Painting needs Chromium on the PATH; it is the browser's own mark, `first-contentful-paint`.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from lightning_topo.outputs.page import write_report
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--captures", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = large_run(Path(folder) / "topology", arguments.groups, arguments.captures)
        began = time.perf_counter()
        page = write_report([record], Path(folder) / "report.html")
        seconds = time.perf_counter() - began
        print("| what | measured |\n|---|---|")
        print(f"| {arguments.groups} groups, {arguments.captures} captures | {page.stat().st_size / 1e6:.2f} MB |")
        print(f"| written in | {seconds:.1f} s |")
        for width in (1280, 390) if shutil.which("chromium") else ():
            paints = first_paints(page, width)
            print(f"| first paint, {width} px | {statistics.median(paints):.0f} ms (worst of 5: {max(paints):.0f}) |")


if __name__ == "__main__":
    main()
