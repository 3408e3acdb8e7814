"""A page that stands open follows its run, from the file system, and loses nothing of what was chosen."""

import time
from contextlib import suppress

import pytest

from lightning_topo.outputs.page import write_report
from lightning_topo.outputs.page._page import Live
from lightning_topo.outputs.record import RecordFollower, RecordWriter
from tests.outputs.page.synthetic import distortion

Error = pytest.importorskip("playwright.sync_api").Error

CHOSEN = "({ group: chosen.group, range: chosen.range.map(Math.round), scroll: Math.round(scrollY) })"
SHOWN = "typeof page === 'object' && page.last_step === {} && charts.length > 0 && chosen.group === 'c'"


def wait_for(tab, holds):
    """Up to 30 s, also while the page loads itself again; its policy forbids Playwright's own waiting."""
    for _ in range(600):
        with suppress(Error):
            if tab.evaluate(holds):
                return
        time.sleep(0.05)
    pytest.fail(f"after 30 s not yet: {holds}")


def ask(tab, value):
    """A value of the page as soon as it has one: while it loads itself again, it has none."""
    for _ in range(600):
        with suppress(Error):
            return tab.evaluate(value)
        time.sleep(0.05)
    return pytest.fail(f"after 30 s the page still loads: {value}")


def test_it_loads_what_is_new_and_keeps_group_zoom_and_scroll(browser, tmp_path):
    writer = RecordWriter.open(tmp_path / "topology")

    def train(first, last):
        for step in range(first, last):
            for group in ("a", "b", "c"):
                writer.measurement(distortion(step, group, 0.1 if group != "b" else 0.2, 0.9, 1.1))

    def publish(live):
        return write_report([RecordFollower(writer.dirpath).read()], writer.dirpath / "report.html", live=live)

    train(1, 100)
    page = publish(Live("1", 2.0))
    tab = browser._context(1280, "light").new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-drawn]", state="attached")
    tab.evaluate("$('group').selectedIndex = 2; setGroup('c'); setRange(19.5, 60.5); scrollTo(0, 400)")
    before = ask(tab, CHOSEN)
    train(100, 150)
    publish(Live("2", 0.1))
    wait_for(tab, SHOWN.format(149))
    wait_for(tab, "scrollY === 400")
    assert ask(tab, CHOSEN) == before
    train(150, 180)
    publish(None)  # the run is over: the page loads itself once more, and no more from there on
    wait_for(tab, SHOWN.format(179))
    wait_for(tab, "scrollY === 400")
    assert ask(tab, CHOSEN) == before
    tab.evaluate("window.stays = true")
    tab.wait_for_timeout(1500)
    assert tab.evaluate("window.stays")
    assert not errors
    tab.close()
    writer.close()


def test_the_page_of_a_run_that_was_killed_looks_less_and_less_often(browser, tmp_path):
    writer = RecordWriter.open(tmp_path / "topology")
    writer.measurement(distortion(1, "a", 0.1, 0.9, 1.1))
    writer.close()
    page = write_report([RecordFollower(writer.dirpath).read()], tmp_path / "report.html", live=Live("7", 0.2))
    tab = browser._context(1280, "light").new_page()
    loads = []
    tab.on("load", lambda _: loads.append(1))
    tab.goto(page.as_uri())
    wait_for(tab, "window.name.includes('\"wait\":0.8')")
    assert 3 <= len(loads) <= 5
    tab.close()
