"""Two records of a run: that of a training that breaks down, and a small one of things that are seldom."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lightning_topo import RunRecord, read_record
from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import RecordWriter
from lightning_topo.phases import EventName, Severity, TopologyEvent
from tests.outputs.driving import drive


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
