"""Thresholds that make no sense are refused, and every one of them counts."""

import math

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.phases import Band, PhaseRules, replay
from tests.phases.series import distinct, losses, names, persistences, ratios, sharpnesses


def test_rules_are_checked():
    with pytest.raises(ValueError, match="leave < enter"):
        Band(enter=0.5, leave=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Band(enter=1.0, leave=0.5, enter_window=0)
    for name in ("hold_steps", "instability_age", "loss_window", "fate_confirm", "instability_ratio", "diagram_jump"):
        with pytest.raises(ValueError, match=name):
            PhaseRules(**{name: 0})
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite critical_ratio > 0"):
            PhaseRules(critical_ratio=value)


BROKEN = [1.5, *[0.1] * 30]
DOUBLING = [2.0**k for k in range(13)]


@pytest.mark.parametrize(
    ("rules", "found", "more"),
    [
        ({"critical_ratio": 0.5}, ratios([0.6]), ("topology_breakdown", 1)),
        ({"hold_steps": 30}, ratios(BROKEN), ("topology_restored", 31)),
        ({"curvature": Band(0.5, 0.4)}, sharpnesses([0.6] * 3, "eta_lambda"), ("curvature_bound_exceeded", 20)),
        ({"edge": Band(0.5, 0.4, enter_window=1)}, sharpnesses([0.6]), ("edge_of_stability_enter", 0)),
        ({"merge_confirm": 1}, distinct([8, 7, 8, 7]), ("neurons_merged", 3)),
        ({"betti_confirm": 1}, persistences([3, 4]), ("betti_changed", 1)),
        ({"diagram_jump": 0.1}, persistences([0.2], "log_bottleneck_0"), ("diagram_jump", 0)),
        ({"loss_rises": 2}, losses([*[1.0] * 20, *DOUBLING]), ("instability", 31)),
        ({"loss_window": 2}, losses([*[1.0] * 20, *DOUBLING]), ("instability", 29)),
        ({"edge_rises": 2}, [*sharpnesses([1.0] * 3), *losses([*[1.0] * 20, *DOUBLING], 21)], ("instability", 52)),
    ],
)
def test_each_rule_decides_its_event(rules, found, more):
    assert more not in names(replay(found))
    assert more in names(replay(found, PhaseRules(**rules)))


def test_a_band_remembers_as_many_values_as_its_longer_window():
    assert Band(1.0, 0.5, enter_window=2, leave_window=7).memory == 7
    assert Band(1.0, 0.5, enter_window=4, leave_window=1).memory == 4
    held = replay([Measurement(k, 0, "sharpness", "", {"sharpness_ratio": 1.0}) for k in range(100)])
    assert len(held.state.edge.bands["sharpness"].recent) == 5
