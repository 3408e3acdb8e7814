"""The gate of a loop: what it is made from, and what it refuses to wait for."""

import pytest

from lightning_topo import Distortion, Persistence
from lightning_topo.loops._gate import LoopGate
from lightning_topo.outputs._gates import StopRules
from lightning_topo.probes import Period


def test_there_is_a_gate_where_there_is_something_to_stop_on():
    assert LoopGate.of(None, []) is None
    rules = StopRules.of("topology_breakdown", min_count=2)
    assert LoopGate.of(rules, [Distortion()]).rules is rules
    assert LoopGate.of("topology_breakdown", [Distortion()]).rules.min_count == 1


@pytest.mark.parametrize(
    ("stop_on", "words"),
    [
        ("betti_changed", "no probe sees that event. Add the probe 'persistence'"),
        (["topology_breakdown", "edge_of_stability_enter"], "stop_on='edge_of_stability_enter' can never stop"),
        (StopRules.of(None, patience=3), r"add Persistence\(\) to the probes"),
    ],
)
def test_what_no_probe_can_see_is_refused_by_name(stop_on, words):
    with pytest.raises(ValueError, match=words):
        LoopGate.of(stop_on, [Distortion()])


class Own:
    """A probe of the user's."""

    name, period = "own", Period(1)

    def measure(self, capture):
        return {"sharpness_ratio": 1.2}


def test_a_probe_of_ones_own_may_see_anything():
    assert LoopGate.of("edge_of_stability_enter", [Distortion(), Own()]) is not None
    with pytest.raises(ValueError, match="Persistence"):
        LoopGate.of(StopRules.of(None, patience=3), [Own()])


def test_patience_is_served_by_captures_of_diagrams():
    assert LoopGate.of(StopRules.of(None, patience=3), [Persistence()]).rules.patience == 3
