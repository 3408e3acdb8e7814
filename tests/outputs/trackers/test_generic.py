"""Loggers that are known by Lightning's generic interface alone: Comet, Neptune."""

import math
import sys
import types

import pytest
from lightning.pytorch.loggers import CometLogger
from lightning.pytorch.loggers.logger import Logger

from lightning_topo import read_record
from lightning_topo.outputs.trackers import Tracker, tracker_of
from tests.outputs.driving import drive


class Experiment:
    """Of Comet's experiment the rows that Lightning's logger sends; everything else is taken and forgotten."""

    project_name = "project"

    def __init__(self):
        self.rows = []

    def __internal_api__log_metrics__(self, metrics, step, epoch, prefix, framework):
        self.rows.append((step, prefix, metrics))

    def get_key(self):
        return "k" * 32

    def __getattr__(self, name):
        return lambda *args, **options: None


@pytest.fixture
def comet(monkeypatch):
    """Lightning's own CometLogger over a stand-in of Comet's package."""
    package = types.ModuleType("comet_ml")
    experiment = Experiment()
    package.start = lambda **options: experiment
    package.ExperimentConfig = lambda **options: types.SimpleNamespace(**options)
    package.config = types.SimpleNamespace(DEFAULT_OFFLINE_DATA_DIRECTORY=".")
    monkeypatch.setitem(sys.modules, "comet_ml", package)
    monkeypatch.setattr("lightning.pytorch.loggers.comet._COMET_AVAILABLE", True)
    return experiment


class NeptuneLogger(Logger):
    """As Neptune's logger was: a series for each key, and a value that is no number refused."""

    name, version = "neptune", "RUN-1"

    def __init__(self):
        super().__init__()
        self.series = {}

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"Neptune does not take {value}")
            self.series.setdefault(key, []).append(value)


def recorded(folder):
    """The largest ratio of every step, and that of one group."""
    worst, of_group = {}, {}
    for m in read_record(folder).measurements:
        if m.probe == "distortion":
            worst[m.step - 1] = max(worst.get(m.step - 1, 0.0), m.values["critical_ratio"])
            if m.group == "net.0":
                of_group[m.step - 1] = m.values["critical_ratio"]
    return worst, of_group


def test_comet_and_neptune_get_every_row(tmp_path, comet, small_figures):
    pair = CometLogger(api_key="none", prefix="mine", offline_directory=str(tmp_path)), NeptuneLogger()
    assert {type(tracker_of(logger)) for logger in pair} == {Tracker}
    folder = drive(tmp_path / "topology", loggers=pair).outputs.dirpath
    worst, of_group = recorded(folder)
    rows = [(step, metrics) for step, prefix, metrics in comet.rows if prefix == "mine"]
    assert {s: row["topology/critical_ratio"] for s, row in rows if "topology/critical_ratio" in row} == worst
    key = "topology/net_0/critical_ratio"
    assert {s: row[key] for s, row in rows if key in row} == of_group
    assert pair[1].series["topology/critical_ratio"] == list(worst.values())
    assert pair[1].series[key] == list(of_group.values())
    figures = {path.name for path in (folder / "figures").rglob("*.png")}
    assert figures == {"000000015.png"}
