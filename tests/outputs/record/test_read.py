"""A record read back: what was written, nothing executed, and nothing believed that is no measurement."""

import math
import os
import pickle

import numpy as np
import pytest
import torch

from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, RecordWriter, read_record
from lightning_topo.phases import EventName, Severity, TopologyEvent


def some(step, **values):
    return Measurement(step, 0, "distortion", "net.0", values or {"critical_ratio": 0.1 * step})


EVENT = TopologyEvent(
    EventName.TOPOLOGY_BREAKDOWN, 3, 1, "net.0", Severity.ERROR, math.inf, 1.0, "What <b>happened</b>.", "Do."
)


def test_what_is_written_is_read_back(tmp_path):
    writer = RecordWriter.open(tmp_path / "topology")
    writer.measurement(some(1, critical_ratio=math.inf, contraction=-math.inf, expansion=math.nan, betti_0=3.0))
    writer.measurement(some(2))
    writer.event(EVENT)
    writer.close()
    record = read_record(writer.dirpath)
    assert record.run_id == writer.run_id
    first, second = record.measurements
    assert second == some(2)
    assert first.values["critical_ratio"] == math.inf
    assert first.values["contraction"] == -math.inf
    assert math.isnan(first.values["expansion"])
    assert record.events == (EVENT,)
    assert record.groups == ("net.0",)
    assert record.n_unreadable == 0


def test_a_step_measured_again_after_a_resume_counts_once(tmp_path):
    writer = RecordWriter.open(tmp_path)
    for step, value in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25), (3, 0.35)):
        writer.measurement(some(step, critical_ratio=value))
    found = read_record(tmp_path).measurements
    assert [(m.step, m.values["critical_ratio"]) for m in found] == [(1, 0.1), (2, 0.25), (3, 0.35)]


@pytest.mark.parametrize("text", ["", "no json\n", "[]\n", '{"schema": 1}\n'])
def test_a_folder_without_a_record_or_header_says_so(tmp_path, text):
    with pytest.raises(FileNotFoundError, match="run folder"):
        read_record(tmp_path)
    (tmp_path / MEASUREMENTS).write_text(text)
    with pytest.raises(ValueError, match="schema and run_id"):
        read_record(tmp_path)


def test_lines_that_are_no_measurement_are_counted_not_believed(tmp_path):
    writer = RecordWriter.open(tmp_path)
    writer.measurement(some(1))
    with (tmp_path / MEASUREMENTS).open("a") as file:
        file.write('{"step": "x"}\n[1]\n{"step": 1, "epoch": 0, "probe": "p", "group": "g", "v": "__import__"}\n')
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"name": "unheard_of"}\n')
    record = read_record(tmp_path)
    assert record.measurements == (some(1),)
    assert record.n_unreadable == 4


def test_diagrams_come_back_as_they_were(tmp_path):
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    diagrams = {"net/0": persistence(points), "net.2": persistence(points, max_landmarks=10)}
    writer = RecordWriter.open(tmp_path)
    writer.diagrams(40, diagrams)
    writer.diagrams(5, diagrams)
    assert (tmp_path / "diagrams" / "step-000000040.npz").is_file()
    record = read_record(tmp_path)
    assert record.diagram_steps == (5, 40)
    found = record.diagrams(40)
    assert found.keys() == diagrams.keys()
    for name, diagram in diagrams.items():
        for field in ("n_points", "diameter", "covering_radius", "engine", "exact"):
            assert getattr(found[name], field) == getattr(diagram, field)
        for bars, expected in zip(found[name], diagram, strict=True):
            assert torch.equal(bars.births, expected.births)
            assert torch.equal(bars.deaths, expected.deaths)
    assert list((tmp_path / "diagrams").glob(".*")) == []


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_reading_a_strangers_folder_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = RecordWriter.open(tmp_path / "run")
    writer.measurement(some(1))
    (tmp_path / "run" / "diagrams").mkdir()
    (tmp_path / "run" / "reference").mkdir()
    bomb = np.array([Bomb()], dtype=object)
    for name in ("diagrams/step-000000001.npz", "reference/clouds.npz"):
        np.savez(tmp_path / "run" / name, meta=bomb, step=bomb, **{"cloud/net.0": bomb})
    record = read_record(tmp_path / "run")
    with pytest.raises(ValueError, match="allow_pickle"):
        record.diagrams(1)
    assert writer.read_reference("net.0") is None
    (tmp_path / "run" / "diagrams" / "step-000000001.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="pickle"):
        record.diagrams(1)
    assert not (tmp_path / "exploded").exists()
