"""A record as frames: a row for each thing, held against the record itself."""

import math

import pytest

from lightning_topo import read_record
from lightning_topo._notebook.frames import diagrams_frame, events_frame, measurements_frame, phases_frame
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import RecordWriter
from lightning_topo.phases import EventName, Phase, TopologyEvent

pytest.importorskip("matplotlib")
pandas = pytest.importorskip("pandas")


def test_measurements_are_rows(trained):
    record = trained.record
    frame = record.measurements_frame()
    assert list(frame.columns[:4]) == ["step", "epoch", "probe", "group"]
    assert len(frame) == len(record.measurements)
    for row, m in zip(frame.to_dict("records"), record.measurements, strict=True):
        assert (row["step"], row["epoch"], row["probe"], row["group"]) == (m.step, m.epoch, m.probe, m.group)
        known = {name: value for name, value in row.items() if name in m.values}
        assert known == pytest.approx(dict(m.values), nan_ok=True)
        assert all(math.isnan(row[name]) for name in frame.columns[4:] if name not in m.values)
    table = frame.pivot_table(index="step", columns="group", values="critical_ratio")
    assert set(table.columns) == set(record.groups)


def test_events_are_rows(written, trained):
    frame = written.events_frame()
    (row,) = frame.to_dict("records")
    assert list(row) == ["name", "step", "epoch", "group", "severity", "value", "threshold", "message", "remedy"]
    assert (row["name"], row["severity"], row["threshold"], row["message"]) == ("gap", "info", math.inf, "Message.")
    assert math.isnan(row["value"])
    assert list(trained.record.events_frame().name) == [str(event.name) for event in trained.record.events]


def test_changes_of_phase_are_rows(trained):
    frame = trained.record.phases_frame()
    assert list(frame.columns) == ["step", "group", "phase", "name"]
    assert set(frame.group) == {"", *trained.record.groups}
    worst = {m.step: 0.0 for m in trained.record.measurements}
    for m in trained.record.measurements:
        worst[m.step] = max(worst[m.step], m.values.get("critical_ratio", 0.0))
    broken = [step for step, r in sorted(worst.items()) if r >= 1.0]
    rows = frame[(frame.group == "") & (frame.name == "breakdown")]
    assert rows.step.tolist()[:1] == broken[:1]
    assert {(row.phase, row.name) for row in frame.itertuples(index=False)} <= {
        (p.value, p.name.lower()) for p in Phase
    }


def test_bars_are_rows_with_their_block(written, trained):
    frame = written.diagrams_frame()
    assert list(frame.columns) == ["step", "group", "block", "dimension", "birth", "death"]
    for block, diagram in enumerate(written.diagrams(2).values()):
        rows = frame[(frame.group == "heads") & (frame.block == block)]
        assert rows.death.tolist() == diagram[0].deaths.tolist()
    assert (frame.death == math.inf).sum() == 2
    record = trained.record
    frame = record.diagrams_frame()
    for step in record.diagram_steps:
        for group, diagram in record.diagrams(step).items():
            rows = frame[(frame.step == step) & (frame.group == group)]
            for k, bars in enumerate(diagram):
                assert rows[rows.dimension == k].death.tolist() == bars.deaths.tolist()
    only = record.diagrams_frame(steps=record.diagram_steps[:1])
    assert set(only.step) == set(record.diagram_steps[:1])


def test_frames_of_nothing_have_their_columns(tmp_path):
    RecordWriter.open(tmp_path).close()
    record = read_record(tmp_path)
    assert list(record.measurements_frame().columns) == ["step", "epoch", "probe", "group"]
    assert len(record.events_frame().columns) == 9
    assert record.phases_frame().empty
    assert record.diagrams_frame().empty
    for empty, full in (
        (phases_frame({}), phases_frame({"": [(3, Phase.PRESERVED)]})),
        (events_frame([]), events_frame([TopologyEvent(EventName.GAP, 1, 0, value=2.0)])),
    ):
        assert list(empty.columns) == list(full.columns)
    numbers = {"step": "int64", "block": "int64", "dimension": "int64", "birth": "float64", "death": "float64"}
    assert {name: str(diagrams_frame({}).dtypes[name]) for name in numbers} == numbers
    assert str(phases_frame({}).dtypes["phase"]) == "int64"
    assert str(events_frame([]).dtypes["value"]) == "float64"


def test_a_quantity_that_another_probe_measures_is_missing_not_zero():
    lines = [Measurement(1, 0, "a", "g", {"x": 0.0}), Measurement(1, 0, "b", "", {"y": math.inf})]
    frame = measurements_frame(lines)
    assert list(frame.columns) == ["step", "epoch", "probe", "group", "x", "y"]
    assert frame.x.isna().tolist() == [False, True]
    assert frame.y.tolist()[1] == math.inf
