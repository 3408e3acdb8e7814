"""Frames and figures of a record, held against the record itself."""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lightning_topo import RunRecord, read_record
from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import RecordWriter
from lightning_topo.phases import EventName, Phase, Severity, TopologyEvent
from tests import warm
from tests.outputs.driving import drive

pytest.importorskip("matplotlib")
pandas = pytest.importorskip("pandas")

ROOT = Path(__file__).parents[2]
PLOTS = ("phases", "learning_rate", "critical_ratio", "stability", "distortion", "diagram", "change")
PLOTS += ("betti_curves", "crocker")


class Watched(NamedTuple):
    """A run folder, and its record."""

    dirpath: Path
    record: RunRecord


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training that has broken down."""
    training = drive(tmp_path_factory.mktemp("notebook"), 16, hot={3, 9})
    folder = training.outputs.dirpath
    return Watched(folder, read_record(folder))


@pytest.fixture
def written(tmp_path):
    """A small record with a group of two blocks, an infinity, and a NaN."""
    writer = RecordWriter.open(tmp_path)
    for step in (1, 2):
        values = {"critical_ratio": math.inf if step == 2 else 0.1, "contraction": 0.5}
        writer.measurement(Measurement(step, 0, "distortion", "heads", values))
    writer.measurement(Measurement(2, 0, "training", "", {"loss": math.nan}))
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    writer.diagrams(2, {"heads[0]": persistence(points, 0), "heads[1]": persistence(2 * points, 0)})
    writer.event(TopologyEvent(EventName.GAP, 2, 0, "", Severity.INFO, None, math.inf, "Message.", "Remedy."))
    writer.close()
    return read_record(tmp_path)


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
    assert list(record.diagrams_frame().dtypes) == list(record.diagrams_frame().dtypes)
    assert record.diagrams_frame().step.dtype == "int64"
    for name in (*PLOTS, "fate", "entropy"):
        with pytest.raises(ValueError, match="found none in"):
            getattr(record, f"plot_{name}")()


@pytest.mark.parametrize("name", PLOTS)
def test_every_figure_is_drawn_and_shows_itself_in_a_notebook(trained, name):
    from matplotlib.figure import Figure

    figure = getattr(trained.record, f"plot_{name}")()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    for axes in figure.axes:
        assert axes.has_data()


def test_figures_show_the_group_that_is_asked_for_or_the_worst(trained):
    record = trained.record
    table = record.measurements_frame().pivot_table(index="step", columns="group", values="critical_ratio")
    worst = table.max().idxmax()
    assert record.plot_crocker().get_suptitle().startswith(f"{worst}: ")
    (axes,) = record.plot_critical_ratio().axes
    by_name = {line.get_label(): line for line in axes.lines}
    for group in record.groups:
        steps = list(by_name[group].get_xdata())
        expected = table[group][steps].replace(0.0, math.nan)  # which has no place on a log axis
        assert list(by_name[group].get_ydata()) == pytest.approx(expected.tolist(), nan_ok=True)
    first = record.diagram_steps[0]
    assert record.plot_diagram("net.3", first).get_suptitle() == f"net.3: persistence diagram at step {first}"
    with pytest.raises(ValueError, match=r"expected a group of net\.0, net\.3, got 'conv'"):
        record.plot_distortion("conv")
    with pytest.raises(ValueError, match="expected a step of diagram_steps, got 3"):
        record.plot_diagram(step=3)


def test_without_pandas_or_matplotlib_the_remedy_is_said(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"lightning-topo\[notebook\]"):
        written.measurements_frame()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "lightning_topo._figures.inline", raising=False)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        written.plot_critical_ratio()


def test_the_example_runs(tmp_path):
    out = tmp_path / "figures"
    done = warm.run(str(ROOT / "examples" / "notebook.py"), "--steps", 40, "--out", out, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in out.glob("*.png")} == set(PLOTS)
    assert "idxmax" in done.stdout
