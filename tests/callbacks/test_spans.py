"""The way since the last snapshot, in a training, against the weights themselves."""

import pytest
import torch

from lightning_topo import Distortion, TopologyMonitor, read_record, step_distortion
from tests.callbacks.training import Classifier, Weights, fit, loader


def test_a_span_is_measured_beside_the_step(tmp_path):
    torch.manual_seed(0)
    monitor = TopologyMonitor([Distortion(every_n_steps=4)], report=False, on_error="raise", dirpath=tmp_path / "run")
    weights = Weights()
    fit(Classifier(lr=0.01), [weights, monitor], root=tmp_path, data=loader(batch_size=4), max_steps=16)
    lines = [m for m in read_record(monitor.dirpath).measurements if m.probe == "distortion"]
    assert [m.step for m in lines if m.group == "net.0"] == [1, 4, 8, 12, 16]
    # The snapshots: of the first step's end, and of the first measurement that is ten steps later.
    starts = {4: 1, 8: 1, 12: 1, 16: 12}
    groups = {group.name: group for group in monitor.groups}
    for line in lines:
        if line.step == 1:
            assert "span_ratio" not in line.values
            continue
        clouds = (groups[line.group].gather(weights.seen[step]) for step in (starts[line.step], line.step))
        span = step_distortion(*clouds)
        assert line.values["span_ratio"] == pytest.approx(span.critical_ratio)
        assert line.values["span_contraction"] == pytest.approx(span.contraction)
        assert line.values["span_expansion"] == pytest.approx(span.expansion)


def test_where_every_step_is_measured_there_are_no_spans(tmp_path):
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], report=False, on_error="raise", dirpath=tmp_path / "run")
    fit(Classifier(lr=0.2), [monitor], root=tmp_path, max_steps=4)
    assert not any("span_ratio" in m.values for m in read_record(monitor.dirpath).measurements)
