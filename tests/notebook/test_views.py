"""Frames and figures of a record, held against the record itself."""

import math
import sys
from pathlib import Path

import pytest

from lightning_topo import read_record
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import RecordWriter
from tests import warm

pytest.importorskip("matplotlib")
pandas = pytest.importorskip("pandas")

ROOT = Path(__file__).parents[2]
PLOTS = ("phases", "learning_rate", "critical_ratio", "stability", "distortion", "diagram", "change")
PLOTS += ("betti_curves", "crocker")


def test_a_record_of_nothing_has_no_figures(tmp_path):
    RecordWriter.open(tmp_path).close()
    record = read_record(tmp_path)
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


NOISY = {"directional_ratio": 0.4, "critical_sharpness": 0.9}


@pytest.mark.parametrize(
    ("others", "drawn"),
    [
        ({}, ["directional ratio", "critical sharpness"]),
        ({"batch_sharpness_ratio": 1.0}, ["batch sharpness ratio"]),
        ({"sharpness_ratio": 0.2, "batch_sharpness_ratio": 1.0}, ["sharpness ratio", "batch sharpness ratio"]),
    ],
)
def test_ratios_of_single_steps_are_drawn_only_without_others(tmp_path, others, drawn):
    writer = RecordWriter.open(tmp_path)
    for step in (1, 2, 3):
        writer.measurement(Measurement(step, 0, "edge", "", NOISY | others))
    writer.close()
    below = read_record(tmp_path).plot_stability().axes[1]
    named = [str(line.get_label()) for line in below.lines]
    assert [name.partition(",")[0] for name in named if "edge at 1" in name] == drawn


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
