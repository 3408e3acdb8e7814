"""The findings of each hook: a probe's measurements once, and every event."""

from lightning_topo.measurement import Measurement
from lightning_topo.outputs._feed import FeedOutput, Findings
from lightning_topo.outputs._outputs import Outputs
from lightning_topo.phases import EventName, TopologyEvent
from lightning_topo.quantities import RESERVED_PROBES
from tests.outputs.driving import drive


def test_other_ranks_have_the_feed_alone(tmp_path):
    training = drive(tmp_path, 3, is_first_rank=False)
    assert training.outputs.dirpath is None
    found = training.outputs.take()
    assert {m.probe for m in found.measurements} == {"distortion"}
    assert not list(tmp_path.iterdir())


def test_findings_are_of_one_hook(tmp_path):
    outputs = Outputs()
    outputs.measurement(Measurement(1, 0, "training", "", {"loss": 1.0}))
    assert outputs.take() is None
    event = TopologyEvent(EventName.GAP, 2, 1)
    outputs.event(event)
    assert outputs.take().events == (event,)
    found = Measurement(3, 1, "fit", "", {"x": 1.0})
    outputs.measurement(found)
    taken = outputs.take()
    assert (taken.step, taken.epoch, taken.measurements, taken.events) == (3, 1, (found,), ())
    assert outputs.take() is None


def test_the_monitors_own_notes_are_no_findings_but_coverage_is():
    feed = FeedOutput()
    for probe in sorted(RESERVED_PROBES):
        feed.measurement(Measurement(1, 0, probe, "", {"x": 1.0}))
    assert {m.probe for m in feed.take().measurements} == {"coverage"}


def test_values_are_found_by_probe_and_group_and_a_later_one_stands():
    lines = [("fit", "", 1.0), ("fit", "net.0", 2.0), ("own", "net.0", 3.0), ("fit", "", 4.0)]
    found = Findings(1, 0, tuple(Measurement(1, 0, probe, group, {"x": x}) for probe, group, x in lines))
    assert found.values == {"fit": {"": {"x": 4.0}, "net.0": {"x": 2.0}}, "own": {"net.0": {"x": 3.0}}}
    assert Findings(1, 0, ()).values == {}


def test_an_event_without_a_measurement_gives_its_own_step():
    feed = FeedOutput()
    feed.event(TopologyEvent(EventName.GAP, 4, 2))
    feed.event(TopologyEvent(EventName.GAP, 7, 3))
    found = feed.take()
    assert (found.step, found.epoch, len(found.events)) == (7, 3, 2)
    assert found.values == {}
