import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page import render_page
from lightning_topo.outputs.page._facts import facts
from lightning_topo.outputs.page._model import Budget, run_view
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import RecordWriter, RunRecord, read_record
from lightning_topo.phases import Phase, replay
from tests.outputs.page.synthetic import distortion, ring_diagram

WHOLE = Budget.of(1)


def values_of(record: RunRecord, group: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.values[name]) for m in record.measurements if m.group == group and name in m.values]


def test_few_measurements_are_carried_as_they_are(demo: RunRecord) -> None:
    view = run_view(demo, "demo", WHOLE)
    assert view.groups == ("net.0", "net.2")
    assert view.ratio is not None
    for i, group in enumerate(view.groups):
        recorded = values_of(demo, group, "critical_ratio")
        assert list(zip(view.ratio.steps, view.ratio.columns[str(i)], strict=True)) == recorded
    assert list(zip(view.curves["loss"].steps, view.curves["loss"].columns["loss"], strict=True)) == values_of(
        demo, "", "loss"
    )


def test_the_ribbon_is_the_replay(breakdown: RunRecord) -> None:
    view = run_view(breakdown, "breakdown", WHOLE)
    assert view.ribbon is not None
    for row, group in enumerate(("", *view.groups)):
        changes = dict(replay(breakdown.measurements).phases[group])
        phase = None
        for step, code in zip(view.ribbon.steps, view.ribbon.codes[row], strict=True):
            phase = changes.get(step, phase)
            assert code == phase
    assert Phase.BREAKDOWN in view.ribbon.codes[1]
    assert Phase.BREAKDOWN not in view.ribbon.codes[2]


def test_thinned_bands_keep_their_extremes(demo: RunRecord) -> None:
    view = run_view(demo, "demo", replace(WHOLE, band_columns=20))
    band = view.details[0].band
    assert band is not None
    assert (len(band.steps), band.merged) == (20, 41)
    assert min(band.columns["contraction"]) == min(v for _, v in values_of(demo, "net.0", "contraction"))
    assert max(band.columns["expansion"]) == max(v for _, v in values_of(demo, "net.0", "expansion"))


def test_diagrams_come_from_every_capture_or_evenly_spread(demo: RunRecord) -> None:
    detail = run_view(demo, "demo", WHOLE).details[1]
    assert detail.crocker is not None
    assert detail.slides is not None
    assert detail.crocker.steps == detail.slides.steps == demo.diagram_steps
    assert (detail.n_captures, detail.n_neurons, detail.n_distinct, detail.landmark_error) == (33, 64, 64, None)
    thinned = run_view(demo, "demo", replace(WHOLE, captures=5)).details[1]
    assert thinned.crocker is not None
    assert thinned.crocker.steps == (0, 200, 400, 600, 800)
    assert thinned.n_captures == 33


def test_only_the_worst_groups_of_very_many_are_shown(tmp_path: Path) -> None:
    ratios = {"a": 0.1, "b": math.nan, "c": 0.3, "d": 0.2}
    record = RunRecord(tmp_path, "id", tuple(distortion(1, group, r, 1.0, 1.0) for group, r in ratios.items()))
    view = run_view(record, "run", replace(WHOLE, groups=2))
    assert view.groups == ("c", "d")
    assert view.outcome.n_groups == 4


def test_the_loudest_events_are_kept_in_order(hostile: RunRecord) -> None:
    view = run_view(hostile, "hostile", replace(WHOLE, events=3))
    assert [event.severity for event in view.events] == ["error"] * 3
    assert [event.step for event in view.events] == sorted(event.step for event in view.events)
    assert view.outcome.n_events == 8


def test_of_too_many_equal_events_an_even_spread_is_kept(large: RunRecord) -> None:
    view = run_view(large, "large", replace(WHOLE, events=50))
    every = [event.step for event in history(large).events]
    assert view.outcome.n_events == len(every) > 500
    assert len(view.events) == 50
    assert (view.events[0].step, view.events[-1].step) == (every[0], every[-1])
    for part in range(5):
        low, high = (every[0] + (every[-1] - every[0]) * k / 5 for k in (part, part + 1))
        share = sum(low <= step <= high for step in every) / len(every)
        assert sum(low <= event.step <= high for event in view.events) == pytest.approx(50 * share, abs=3)


def test_blocks_of_a_group_share_its_row(tmp_path: Path) -> None:
    writer = RecordWriter.open(tmp_path / "run")
    writer.measurement(distortion(0, "heads", 0.0, 1.0, 1.0))
    writer.diagrams(0, {f"heads[{b}]": ring_diagram(8, 1.0, 0.2, b, 2) for b in range(3)})
    writer.close()
    detail = run_view(read_record(writer.dirpath), "run", WHOLE).details[0]
    assert detail.n_neurons == 24
    assert detail.slides is not None
    assert [marks.n_bars for marks in detail.slides.marks] == [(24,), (6,)]


@pytest.mark.parametrize("probe", ["distortion", "persistence", "sharpness", "training"])
def test_any_probe_may_be_missing(demo: RunRecord, probe: str) -> None:
    record = replace(demo, measurements=tuple(m for m in demo.measurements if m.probe != probe))
    view = run_view(record, "demo", WHOLE)
    assert (view.ratio is None) == (probe == "distortion")
    assert (view.details[0].change is None) == (probe == "persistence")
    assert ("sharpness_ratio" in view.curves) == (probe != "sharpness")
    assert ("loss" in view.curves) == (probe != "training")


def test_every_edge_ratio_is_drawn_whichever_probe_measured_it_and_the_summary_names_the_one_that_decides() -> None:
    values = {
        "batch_sharpness": 9.0,
        "batch_sharpness_ratio": 1.05,
        "directional_ratio": 0.3,
        "critical_sharpness": 0.4,
    }
    measured = (
        Measurement(4, 0, "sharpness", "", {"sharpness_ratio": 0.05}),
        *(Measurement(step, 0, "step_edge", "", values) for step in (5, 6, 7)),
    )
    view = run_view(RunRecord(Path("run"), "id", measured), "run", WHOLE)
    assert {name: dict(zip(table.steps, table.columns[name], strict=True)) for name, table in view.curves.items()} == {
        "batch_sharpness_ratio": dict.fromkeys((5, 6, 7), 1.05),
        "sharpness_ratio": {4: 0.05},
        "directional_ratio": dict.fromkeys((5, 6, 7), 0.3),
        "critical_sharpness": dict.fromkeys((5, 6, 7), 0.4),
    }
    assert {fact.name: fact.value for fact in facts(view)}["Edge ratio now"] == "1.05 (batch sharpness ratio)"
    without = run_view(RunRecord(Path("run"), "id", measured[:1]), "run", WHOLE)
    assert {fact.name: fact.value for fact in facts(without)}["Edge ratio now"] == "0.05 (sharpness ratio)"


def test_the_budget_shrinks_with_the_groups_and_the_scale() -> None:
    for name in ("ratio_columns", "band_columns", "captures", "scales", "slide_numbers"):
        assert getattr(Budget.of(50), name) < getattr(Budget.of(2), name)
        assert getattr(Budget.of(50, 0.5), name) < getattr(Budget.of(50), name)


def test_a_measurement_of_an_unknown_probe_changes_nothing(demo: RunRecord) -> None:
    own = Measurement(3, 0, "mine", "net.0", {"critical": 1.0})
    record = replace(demo, measurements=(*demo.measurements, own))
    assert run_view(record, "demo", WHOLE).ratio == run_view(demo, "demo", WHOLE).ratio


def test_subsampled_diagrams_say_how_far_they_may_be_off(tmp_path: Path) -> None:
    writer = RecordWriter.open(tmp_path / "run")
    writer.measurement(distortion(0, "net.0", 0.0, 1.0, 1.0))
    ring = ring_diagram(16, 1.0, 0.2, 0)
    diagram = replace(ring, n_points=900, exact=False, covering_radius=0.1 * ring.diameter)
    writer.diagrams(0, {"net.0": diagram})
    writer.close()
    record = read_record(writer.dirpath)
    detail = run_view(record, "run", WHOLE).details[0]
    assert (detail.n_neurons, detail.landmark_error, detail.is_vacuous) == (900, pytest.approx(0.2), False)
    assert "known up to 0.2 of the diameter (2 rho / diameter). Connected pieces" in render_page([record])


def test_what_becomes_of_neurons_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    writer = RecordWriter.open(tmp_path / "run")
    writer.measurement(distortion(0, "net.0", 0.0, 1.0, 1.0))
    for step, gone in ((0, 0.0), (20, 3.0)):
        counts = {"measured_neurons": 64.0, "vanishing_neurons": gone, "independent_neurons": 60.0 - gone}
        counts |= {"multiplicity_1": 3.0, "multiplicity_2": 2.0} if gone else {}
        writer.measurement(Measurement(step, 0, "fate", "net.0", counts))
    writer.close()
    record = read_record(writer.dirpath)
    table = run_view(record, "run", WHOLE).details[0].fate
    assert table is not None
    assert (table.steps, table.columns["vanishing_neurons"]) == ((0, 20), (0.0, 3.0))
    assert table.columns["multiplicity_2"] == (None, 2.0)
    assert "multiplicity_3" not in table.columns
    without = replace(record, measurements=tuple(m for m in record.measurements if m.probe != "fate"))
    assert run_view(without, "run", WHOLE).details[0].fate is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300])
def test_no_value_of_any_quantity_breaks_the_page(demo: RunRecord, value: float) -> None:
    odd = tuple(
        replace(m, values={name: value for name in m.values if name not in ("critical_i", "critical_j")})
        for m in demo.measurements[:200]
    )
    page = render_page([replace(demo, measurements=odd)])
    assert "</html>" in page


def test_a_damaged_diagram_file_is_counted(tmp_path: Path) -> None:
    writer = RecordWriter.open(tmp_path / "run")
    writer.measurement(distortion(0, "net.0", 0.0, 1.0, 1.0))
    for step in (0, 1, 2):
        writer.diagrams(step, {"net.0": ring_diagram(8, 1.0, 0.2, step)})
    writer.close()
    (writer.dirpath / "diagrams" / "step-000000001.npz").write_bytes(b"PK\x03\x04 cut short")
    record = read_record(writer.dirpath)
    view = run_view(record, "run", WHOLE)
    assert view.n_lost_captures == 1
    assert view.details[0].crocker is not None
    assert view.details[0].crocker.steps == (0, 2)
    assert "1 of the captured diagrams could not be read" in render_page([record])


def test_bars_share_pixels_before_captures_are_left_out(demo: RunRecord) -> None:
    whole = run_view(demo, "demo", WHOLE).details[1].slides
    assert whole is not None
    merged = run_view(demo, "demo", replace(WHOLE, slide_numbers=whole.n_numbers - 1)).details[1].slides
    assert merged is not None
    assert merged.merged
    assert not whole.merged
    assert merged.steps == whole.steps
    fewer = run_view(demo, "demo", replace(WHOLE, slide_numbers=merged.n_numbers // 2)).details[1].slides
    assert fewer is not None
    assert 12 <= len(fewer.steps) <= 17
    assert (fewer.steps[0], fewer.steps[-1]) == (0, 800)
