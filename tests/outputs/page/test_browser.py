"""The page as a person meets it, in Chromium."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page import recommendation, verdict
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.conftest import Browser
from tests.outputs.page.covered import OPENED, ratio, record
from tests.outputs.page.synthetic import HOSTILE

pytestmark = pytest.mark.browser

SMALL_TEXT = """() => [...document.querySelectorAll("body *")].flatMap((node) => {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  const size = parseFloat(getComputedStyle(node).fontSize);
  const small = own && size < 12 && node.getClientRects().length;
  return small ? [`${node.tagName} ${node.textContent.trim()}: ${size}`] : [];
})"""
EDGE = "edge of stability"
CHARTS = ["ribbon", "rates", "ratio", "worst", "loss", "logged", "sharpness"]
CHARTS += ["crocker0", "crocker1", "diagram", "total", "step", "fate", "betti", "bottleneck"]


def traces(page, chart: str, run: int = 0) -> list[dict]:
    """What Plotly drew, as it holds it."""
    return page.evaluate(
        """([chart, run]) => document.querySelector(`[data-chart=${chart}][data-run="${run}"]`).data
             .map((t) => ({name: t.name, x: Array.from(t.x), y: Array.from(t.y), z: t.z, customdata: t.customdata}))""",
        [chart, str(run)],
    )


def axis_range(page, chart: str, run: int = 0) -> list[float]:
    return page.evaluate(
        "([c, r]) => document.querySelector(`[data-chart=${c}][data-run='${r}']`).layout.xaxis.range", [chart, run]
    )


def wait_until(page, settled: Callable[[], bool]) -> None:
    """Waits up to 30 s: charts draw when they are seen, and the page's policy forbids Playwright's own waiting."""
    for _ in range(300):
        if settled():
            return
        page.wait_for_timeout(100)
    pytest.fail("the page did not settle within 30 s")


def recorded(record: RunRecord, group: str, name: str) -> tuple[list[int], list[float]]:
    found = [(m.step, m.values[name]) for m in record.measurements if m.group == group and name in m.values]
    return [step for step, _ in found], [value for _, value in found]


@pytest.fixture(scope="module")
def page(browser: Browser, demo: RunRecord):
    return browser.open([demo])


def test_the_verdict_and_every_pane_are_there(page, demo: RunRecord) -> None:
    assert page.text_content("#verdict") == verdict(demo)
    drawn = page.eval_on_selector_all(".plot[data-drawn] .main-svg", "nodes => nodes.map(n => n.closest('.plot'))")
    assert len(drawn) >= len(CHARTS)
    assert page.eval_on_selector_all(".plot", "nodes => nodes.map(n => n.dataset.chart)") == CHARTS
    assert page.query_selector(".plot.absent") is None
    assert page.errors == []


@pytest.mark.parametrize(
    ("chart", "group", "name"),
    [("loss", "", "loss"), ("sharpness", "", "sharpness_ratio"), ("betti", "net.2", "betti_0")],
)
def test_lines_show_the_recorded_numbers(page, demo: RunRecord, chart: str, group: str, name: str) -> None:
    steps, values = recorded(demo, group, name)
    line = traces(page, chart)[0]
    assert line["x"] == steps
    assert line["y"] == pytest.approx(values, rel=5.1e-4)


def test_where_batches_decide_their_ratio_is_drawn_and_compared(browser: Browser, demo: RunRecord) -> None:
    steps = range(20, 800, 20)
    seen = [{"batch_sharpness_ratio": 0.9 + s / 8000, "directional_ratio": 7.0} for s in steps]
    batches = [Measurement(s, 0, "step_edge", "", values) for s, values in zip(steps, seen, strict=True)]
    own = replace(demo, measurements=(*demo.measurements, *batches))
    page = browser.open([own, demo])
    drawn = {line["name"]: line for line in traces(page, "sharpness")}
    assert list(drawn) == ["batch sharpness ratio", "sharpness ratio", "ηλ"]
    assert drawn["batch sharpness ratio"]["x"] == list(steps)
    compared = traces(page, "all-edge")
    assert compared[0]["y"] == pytest.approx([0.9 + s / 8000 for s in steps], rel=5.1e-4)
    assert compared[1]["x"] == recorded(demo, "", "sharpness_ratio")[0]
    assert "batch sharpness ratio" in page.text_content("#curves .legend")
    assert page.errors == []
    page.close()


def test_the_ratio_map_shows_every_measured_step(page, demo: RunRecord) -> None:
    heat = traces(page, "ratio")[0]
    for row, group in enumerate(demo.groups):
        steps, values = recorded(demo, group, "critical_ratio")
        assert heat["x"] == [step - 0.5 for step in steps] + [steps[-1] + 0.5]
        assert heat["customdata"][row] == pytest.approx(values, rel=5.1e-4)
        logs = [math.log10(value) for value in values[1:]]
        assert heat["z"][row][1:] == pytest.approx(logs, abs=5e-4)


def test_the_ribbon_shows_the_phases_and_the_events(page, demo: RunRecord) -> None:
    past = history(demo)
    heat, marks = traces(page, "ribbon")
    assert heat["z"][0] == [int(phase) for _, phase in past.replay.phases[""]]
    assert marks["x"] == [event.step for event in past.events]
    rows = page.query_selector_all("#events tbody tr")
    assert [row.query_selector("b").text_content() for row in rows] == [f"{event.step:,}" for event in past.events]
    assert past.events[0].remedy in rows[0].text_content()


def test_the_pointer_shows_the_sizes_of_all_sets_of_equal_neurons(page) -> None:
    merged = next(t for t in traces(page, "fate") if t["name"] == "in one point")
    assert set(merged["y"]) == {5}
    assert set(merged["customdata"]) == {" (sets of 5, 4, 3, 3, 2, 2, 2, 2 and 4 more in smaller sets)"}
    table = "{steps: [0, 9], columns: {merged_classes: [1, 0], merged_neurons: [2, 0], multiplicity_1: [2, null]}}"
    assert page.evaluate(f"setSizes({table})") == ["", ""], "the line itself shows the size of one set"
    assert page.evaluate("setSizes({steps: [0], columns: {}})") == [""], "an older record"


def test_marks_at_one_step_stand_above_each_other_within_their_row(page) -> None:
    view = "{width: 1000, left: 86, range: [0, 900]}"
    events = "[[5, 0], [300, 1], [5, 0], [6, 0], [300, 0]].map(([step, row]) => ({step, row}))"
    heights = page.evaluate(f"fanned({events}, (event) => event.row, {view})")
    assert heights == pytest.approx([-0.32, 1.0, 0.0, 0.32, 0.0])


def test_the_slider_pages_through_the_diagrams(page, demo: RunRecord) -> None:
    slider = page.locator("#capture")
    slider.focus()
    assert page.text_content("#capture-step") == "step 800"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    step = demo.diagram_steps[1]
    assert page.text_content("#capture-step") == f"step {step}"
    diagram = demo.diagrams(step)["net.2"]
    last = pytest.approx(max(diagram[1].deaths.tolist()), abs=1e-3)
    wait_until(page, lambda: max(traces(page, "diagram")[1]["y"]) == last)
    h0, h1 = traces(page, "diagram")
    assert h0["customdata"].count("never") == 1
    assert sorted(h0["y"])[:-1] == pytest.approx(sorted(diagram[0].deaths.tolist())[:-1], abs=1e-3)
    assert sorted(h1["y"]) == pytest.approx(sorted(diagram[1].deaths.tolist()), abs=1e-3)
    assert "64 bars in H0" in page.text_content("#diagram .note")


def test_the_group_picker_changes_every_chart_of_a_group(page, demo: RunRecord) -> None:
    page.select_option("#group", "net.0")
    wait_until(page, lambda: "net.0" in page.text_content("#band .of"))
    _, low = recorded(demo, "net.0", "total_contraction")
    page.locator("[data-chart=total]").scroll_into_view_if_needed()
    wait_until(page, lambda: min(traces(page, "total")[0]["y"]) == pytest.approx(min(low), rel=1e-3))
    page.locator("[data-chart=betti]").scroll_into_view_if_needed()
    _, betti = recorded(demo, "net.0", "betti_0")
    wait_until(page, lambda: traces(page, "betti")[0]["y"] == pytest.approx(betti))
    page.locator("[data-chart=crocker0]").scroll_into_view_if_needed()
    counts = traces(page, "crocker0")[0]["customdata"]
    assert [max(row[i] for row in counts) for i in range(33)] == [64] * 33
    page.select_option("#group", "net.2")


def test_all_charts_share_one_step_axis_and_zoom_together(page) -> None:
    on_steps = [chart for chart in CHARTS if chart != "diagram"]

    def shown() -> set[tuple[float, ...]]:
        return {tuple(axis_range(page, chart)) for chart in on_steps}

    wait_until(page, lambda: shown() == {(-0.5, 800.5)})
    page.fill("#from", "100")
    page.press("#from", "Enter")
    page.fill("#to", "300")
    page.press("#to", "Enter")
    wait_until(page, lambda: shown() == {(99.5, 300.5)})
    page.click("#reset")
    wait_until(page, lambda: shown() == {(-0.5, 800.5)})


def test_dragging_over_one_chart_zooms_all(browser: Browser, demo: RunRecord) -> None:
    page = browser.open([demo])
    chart = page.locator("[data-chart=worst] .nsewdrag")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    wait_until(page, lambda: axis_range(page, "ribbon") == pytest.approx([200, 400], abs=5))
    wait_until(page, lambda: axis_range(page, "ratio") == axis_range(page, "ribbon"))
    page.close()


def test_controls_can_be_reached_by_keyboard(page) -> None:
    page.click("#verdict")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    named = [name for name in reached if name in ("group", "from", "to", "log-loss", "capture")]
    # From the last control the keyboard goes on to the first.
    assert list(dict.fromkeys(named)) == ["group", "from", "to", "log-loss", "capture"]
    assert "Save Loss by step as CSV" in reached


def test_the_next_step_stands_under_the_verdict_and_the_rate_beside_its_limits(page, demo: RunRecord) -> None:
    assert page.text_content("#decision") == recommendation(demo)
    used, edge = (next(t for t in traces(page, "rates") if t["name"] == name) for name in ("learning rate", EDGE))
    assert used["y"] == [0.3, 0.3]
    steps, ratios = recorded(demo, "", "sharpness_ratio")
    assert edge["x"] == [step for step in steps if step]
    assert edge["y"] == pytest.approx([0.3 / r for step, r in zip(steps, ratios, strict=True) if step], rel=5.1e-4)
    assert "learning rate: 0.3 at step 1" in page.get_attribute("[data-chart=rates]", "aria-label")


@pytest.mark.parametrize("is_measured", [True, False])
def test_where_no_limit_was_measured_none_is_said_to_have_been_kept(browser: Browser, is_measured) -> None:
    measured = [Measurement(step, 0, "training", "", {"learning_rate": 0.1, "loss": 1.0}) for step in (1, 2)]
    measured += [Measurement(step, 0, "distortion", "a", {"critical_ratio": 0.1}) for step in (1, 2) if is_measured]
    page = browser.open([replace(record(*measured), run_id=f"limits-{is_measured}")])
    wait_until(page, lambda: page.query_selector("[data-chart=rates]").evaluate("node => node.data !== undefined"))
    kept = "The learning rate stayed below the measured limits throughout."
    assert page.text_content("#rates .note") == (kept if is_measured else "No limit was measured.")
    page.close()


def test_a_chart_saves_its_numbers(page, demo: RunRecord) -> None:
    with page.expect_download() as download:
        page.click("[aria-label='Save Loss by step as CSV']")
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "series,x,y,value"
    _, losses = recorded(demo, "", "loss")
    assert [float(line.split(",")[2]) for line in lines[1:] if line.startswith("loss,")] == pytest.approx(
        losses, rel=1e-3
    )


def test_the_pointer_need_not_hit_a_line(page) -> None:
    mode = "document.querySelector('[data-chart=loss]').layout.hovermode"
    assert page.evaluate(mode) == "x unified"
    before = page.evaluate("document.querySelector('[data-chart=loss]').layout.yaxis.type")
    page.click("#log-loss")
    kind = "document.querySelector('[data-chart=loss]').layout.yaxis.type"
    wait_until(page, lambda: page.evaluate(kind) != before)
    page.click("#log-loss")


def test_many_runs_are_shown_together_alone(browser: Browser, demo: RunRecord, control: RunRecord) -> None:
    page = browser.open([demo, control, demo, control, demo])
    wait_until(page, lambda: len(page.query_selector_all("#compare .plot .main-svg")) >= 4)
    assert not page.locator("#ribbon").is_visible()
    assert len(traces(page, "phasemap")) == 5
    assert page.errors == []
    page.close()


@pytest.mark.parametrize(
    ("kind", "theme", "width"),
    [
        *((kind, theme, width) for kind in ("demo", "hostile") for theme in ("light", "dark") for width in (1280, 390)),
        ("large", "dark", 390),
    ],
)
def test_pages_fit_and_can_be_read(
    browser: Browser, request: pytest.FixtureRequest, kind: str, theme: str, width: int
) -> None:
    page = browser.open([request.getfixturevalue(kind)], width, theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SMALL_TEXT) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("document.querySelector('[data-chart=worst]').layout.font.color")
    assert (paper, ink) == {
        "light": ("rgb(245, 246, 248)", "#1c2430"),
        "dark": ("rgb(17, 21, 27)", "#e8ecf2"),
    }[theme]
    assert page.errors == []
    page.close()


def test_hostile_names_show_as_they_are(browser: Browser, hostile: RunRecord) -> None:
    page = browser.open([hostile])
    shown = [name.replace("\u202e", "\\u202e") for name in HOSTILE]
    options = page.eval_on_selector_all("#group option", "nodes => nodes.map(n => n.value)")
    assert options == shown
    labels = page.eval_on_selector_all("[data-chart=ratio] .ytick text", "nodes => nodes.map(n => n.textContent)")
    assert "__proto__" in labels
    assert any(label.startswith("<b>x</b> & &") for label in labels)
    assert page.query_selector("[data-chart=ratio] .ytick tspan[style*=bold]") is None
    page.select_option("#group", HOSTILE[1])
    assert HOSTILE[1] in page.text_content("#band .of")
    assert page.errors == []
    page.close()


def test_events_that_are_left_out_are_counted_where_they_are_missed(browser: Browser, large: RunRecord) -> None:
    page = browser.open([large])
    wait_until(page, lambda: page.query_selector("[data-chart=ribbon]").evaluate("node => node.data !== undefined"))
    [count] = page.eval_on_selector_all(
        "#verdict", "nodes => nodes.map(n => n.textContent.match(/([0-9,]+) events/)[1])"
    )
    note = page.text_content("#ribbon .panel .note")
    assert note.startswith(f"Of {count} events 200 have a mark")
    rows = page.eval_on_selector_all("table.events tbody tr", "nodes => nodes.map(n => n.lastChild.textContent)")
    assert len(rows) == len(traces(page, "ribbon")[1]["x"]) == 200
    # A remedy is spelt out once.
    spelt_out = [remedy for remedy in rows if not remedy.startswith("As at step ")]
    assert len(spelt_out) == len(set(spelt_out)) < 10
    page.close()


def test_infinite_and_missing_ratios_do_not_pass_for_numbers(browser: Browser, hostile: RunRecord) -> None:
    page = browser.open([hostile])
    heat = traces(page, "ratio")[0]
    _, values = recorded(hostile, HOSTILE[0], "critical_ratio")
    for z, value in zip(heat["z"][0], values, strict=True):
        assert (z is None) == math.isnan(value)
        assert z is None or z <= 1.0
    page.close()


@pytest.mark.parametrize("kind", ["empty", "one_step"])
def test_what_was_not_measured_is_said_in_place(browser: Browser, request: pytest.FixtureRequest, kind: str) -> None:
    page = browser.open([request.getfixturevalue(kind)])
    absent = page.eval_on_selector_all(".plot.absent", "nodes => nodes.map(n => n.dataset.chart)")
    expected = [] if kind == "empty" else ["ribbon", "ratio", "worst", "total", "step"]
    assert absent == [chart for chart in CHARTS if chart not in expected]
    assert all(page.eval_on_selector_all(".plot.absent", "nodes => nodes.map(n => n.textContent.length > 10)"))
    assert not page.locator(".slider").is_visible()
    assert page.errors == []
    page.close()


def test_runs_side_by_side(browser: Browser, demo: RunRecord, control: RunRecord) -> None:
    page = browser.open([demo, control])
    assert page.eval_on_selector_all(".verdict", "nodes => nodes.map(n => n.textContent)") == [
        verdict(demo),
        verdict(control),
    ]
    differing = page.eval_on_selector_all("tr.differs th", "nodes => nodes.map(n => n.textContent)")
    assert {"Optimizer steps", "Edge of stability reached"} <= set(differing)
    assert axis_range(page, "loss", 0) == axis_range(page, "loss", 1) == [-0.5, 800.5]
    ranges = page.eval_on_selector_all("[data-chart=sharpness]", "nodes => nodes.map(n => n.layout.yaxis.range)")
    assert ranges[0] == ranges[1]
    left, right = (page.locator(f'[data-chart=loss][data-run="{run}"]').bounding_box() for run in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    # On the common axis a run is drawn as far as it has come, and no further.
    for chart in ("ribbon", "ratio"):
        assert [traces(page, chart, run)[0]["x"][-1] for run in (0, 1)] == [800.5, 400.5]
    page.select_option("#group", "net.2")
    assert page.text_content('[data-chart=diagram][data-run="1"]') == "This run has no group of this name."
    assert page.errors == []
    page.close()


def test_a_change_of_theme_redraws(browser: Browser, demo: RunRecord) -> None:
    page = browser.open([demo])
    page.emulate_media(color_scheme="dark")
    ink = "document.querySelector('[data-chart=worst]').layout.font.color"
    wait_until(page, lambda: page.evaluate(ink) == "#e8ecf2")
    page.close()


def test_what_is_known_of_each_step_can_be_seen_and_read(browser: Browser) -> None:
    page = browser.open([record(*OPENED)])
    cells = page.evaluate(
        """() => document.querySelector("[data-chart=ratio]").data
             .map((t) => ({name: t.name, x: Array.from(t.x), z: t.z, text: t.text}))"""
    )
    unknown, known = cells
    assert unknown["x"] == known["x"] == [0.5, 1.5, 2.5, 5.5, 6.5, 12.5, 15.5, 20.5]
    # Of each row the middle band, then one beside it: full for exact, empty for a bound; open is in neither.
    assert [z is not None for z in known["z"][1]] == [True, True, True, True, True, False, True]
    assert [z is not None for z in known["z"][0]] == [True, True, False, False, False, False, False]
    assert unknown["z"][0] == unknown["z"][1] == [None, None, None, None, None, 0, None]
    said = [text.split("<br>")[1:] for text in known["text"][1]]
    assert said[0] == ["r = 0.1 (exact)", "step 1"]
    assert said[2] == ["r at most 0.31 (bound)", "steps 3 to 5"]
    assert said[5] == ["not measured: nothing is claimed", "steps 13 to 15"]
    legend = page.text_content("#ratio .legend")
    assert all(words in legend for words in ("exact r", "upper bound of r", "not measured"))
    bound = next(t for t in traces(page, "worst") if t["name"] == "r at most")
    assert bound["y"][::2] == bound["y"][1::2] == [0.1, 0.1, 0.31, 0.31, 0.31, None, 0.4]
    assert page.errors == []
    page.close()


def test_no_line_of_measured_ratios_leads_over_steps_of_which_nothing_is_claimed(browser: Browser) -> None:
    rate = Measurement(1, 0, "training", "", {"learning_rate": 0.3})
    page = browser.open([replace(record(*OPENED, rate, ratio(18, 0.2)), run_id="with a rate")])
    for chart, name in (("rates", "\u03b7*, where r is 1"), ("worst", "largest r")):
        drawn = next(t for t in traces(page, chart) if t["name"] == name)
        heights = dict(zip(drawn["x"], drawn["y"], strict=True))
        assert [step for step, height in heights.items() if height is None and step > 2] == [13]
        assert heights[18] == pytest.approx(0.3 / 0.2 if chart == "rates" else 0.2)
    used = next(t for t in traces(page, "rates") if t["name"] == "learning rate")
    assert None not in used["y"]
    assert page.errors == []
    page.close()
