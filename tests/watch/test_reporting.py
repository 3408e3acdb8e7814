"""A measurement goes to the outputs, and what follows from it right behind."""

import pytest
import torch

from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import Readings
from lightning_topo._watch.reporting import Reporting
from lightning_topo.homology import persistence
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import DetectorState, EventName, Phase, PhaseRules, TopologyEvent
from tests.watch.driving import GROUPS, Kept


def ratio(step, value, probe="distortion"):
    return Measurement(step, 0, probe, "0", {"critical_ratio": value})


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def reporting(kept):
    return Reporting(kept, DetectorState(), PhaseRules())


def started(reporting):
    readings = Readings([group.name for group in GROUPS])
    reporting.start(Run(GROUPS, readings, {}))
    return readings


def test_events_wait_until_the_outputs_know_the_groups(reporting, kept):
    early = TopologyEvent(EventName.GAP, 0, 0)
    reporting.event(early)
    assert (kept.order, reporting.events) == ([], [early])
    started(reporting)
    assert kept.order == ["start", "gap"]
    reporting.event(TopologyEvent(EventName.GAP, 1, 0))
    assert kept.order == ["start", "gap", "gap"]


def test_events_and_a_phase_that_changes_come_right_behind_what_made_them(reporting, kept):
    started(reporting)
    for step, value in ((1, 0.1), (2, 0.2), (3, 1.5), (4, 1.6)):
        reporting.measurement(ratio(step, value))
    assert kept.order[1:] == [
        *("distortion", "phase", "distortion"),
        *("distortion", "topology_breakdown", "phase", "distortion"),
    ]
    codes = [(step, values["phase"]) for step, _, values in kept.of("phase")]
    assert codes == [(1, float(Phase.PRESERVED)), (3, float(reporting.detector.phase))]
    assert reporting.detector.phase is not Phase.PRESERVED


def test_a_users_own_probe_means_nothing_to_the_detector_and_is_published(reporting, kept):
    readings = started(reporting)
    reporting.measurement(ratio(1, 5.0, probe="mine"))
    assert kept.order == ["start", "mine"]
    assert reporting.detector == DetectorState()
    assert readings.row(1, 0).values.get("topology/0/critical_ratio") == 5.0


def test_lines_are_recorded_and_not_published_and_readings_the_other_way(reporting, kept):
    readings = started(reporting)
    reporting.lines([Measurement(1, 0, "training", GLOBAL, {"loss": 2.0, "learning_rate": 0.1})])
    assert kept.of("training") == [(1, "", {"loss": 2.0, "learning_rate": 0.1})]
    assert readings.row(1, 0).values == {}
    reporting.read([Measurement(1, 0, "coverage", "0", {"critical_ratio_bound": 0.5})])
    assert kept.of("coverage") == []
    reporting.row(1, 0)
    [(step, group, values)] = kept.of("row")
    assert (step, group) == (1, "")
    assert values["topology/0/critical_ratio_bound"] == 0.5


def test_diagrams_are_handed_on_where_there_are_any(reporting, kept):
    reporting.diagrams(3, {})
    reporting.diagrams(4, {"0": persistence(torch.zeros(3, 2), 0)})
    assert kept.drawn == [(4, ["0"])]


def test_before_the_start_there_is_no_row_and_nothing_is_published(reporting, kept):
    reporting.row(1, 0)
    reporting.read([ratio(1, 0.5)])
    reporting.diagrams(1, {})
    assert (kept.order, kept.drawn) == ([], [])
