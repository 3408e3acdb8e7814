"""Divergence: a loss that is not finite, explodes, or rises beyond the edge of stability, reported once."""

import math

from lightning_topo.measurement import Measurement
from lightning_topo.phases import Phase, replay
from tests.phases.series import losses, names


def ratio(step, value):
    return Measurement(step, 0, "sharpness", "", {"sharpness_ratio": value})


def test_a_loss_that_is_not_finite_is_an_instability_once():
    assert names(replay(losses([1.0, math.nan, math.nan, math.inf]))) == [("instability", 1)]
    (event,) = replay(losses([math.nan])).detected
    assert "diverged" in event.message
    # A loss alone does not say that anything was measured of the topology.
    assert replay(losses([1.0])).state.phase is Phase.UNKNOWN


def ratios_at(value, steps):
    return [ratio(k, value) for k in steps]


def test_a_rising_loss_is_unstable_only_beyond_the_edge_and_a_sharp_step_only_with_a_rising_loss():
    level, rising = [2.0] * 12, [2.0 + 0.1 * k for k in range(1, 12)]
    falling = [3.0 - 0.1 * k for k in range(12)]
    assert names(replay([*ratios_at(1.4, [0, 0]), *losses([*level, *rising], 1)])) == []
    assert names(replay([*ratios_at(1.6, [0, 0]), *losses(falling, 1)])) == []
    # Five losses in a row above nine tenths of those before.
    assert names(replay([*ratios_at(1.6, [0, 0]), *losses([*level, *rising], 1)])) == [("instability", 17)]


def test_evidence_of_instability_is_confirmed_and_fresh():
    level, rising = [2.0] * 60, [2.0 + 0.1 * k for k in range(1, 12)]
    once = [ratio(0, 100.0)]
    stale = ratios_at(100.0, [0, 1])
    assert names(replay([*once, *losses([*level[:12], *rising], 1)])) == []
    assert names(replay([*stale, *losses([*level, *rising], 1)])) == []
    fresh = ratios_at(100.0, [59, 60])
    assert names(replay([*losses(level), *fresh, *losses(rising, 61)])) == [("instability", 65)]


def test_a_loss_that_explodes_is_an_instability_whatever_is_measured():
    exploding = [3.0 * 2.0**k for k in range(1, 12)]
    # Three times the first loss is 6: 12, ..., 192 are the first five in a row above the level.
    assert names(replay(losses([2.0, 1.5, *[1.0] * 50, *exploding]))) == [("instability", 57)]
    assert names(replay(losses([2.0, *[1.0, 50.0] * 30]))) == [], "a loss that always varies by as much"


def test_an_instability_is_over_after_calm_values_and_can_come_again():
    calm = losses([1.0] * 5, 1)
    assert names(replay([*losses([math.nan]), *calm, *losses([math.nan], 6)])) == [
        ("instability", 0),
        ("instability", 6),
    ]
    assert names(replay([*losses([math.nan]), *calm[:4], *losses([math.nan], 6)])) == [("instability", 0)]
