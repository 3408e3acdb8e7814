"""When losses that rise again and again are an instability, and when one that jumps is none."""

import pytest

from lightning_topo.phases import PhaseRules
from lightning_topo.phases._climb import ClimbState, Ground, follow_climb

RULES = PhaseRules()


def climbs(losses, *, large_steps=False, at_edge=False):
    """The losses at which a climb was found, with its ground."""
    state, found = ClimbState(), []
    for k in range(len(losses)):
        recent = losses[max(0, k + 1 - RULES.loss_memory) : k + 1]
        state, climb = follow_climb(state, recent, losses[0], large_steps=large_steps, at_edge=at_edge, rules=RULES)
        if climb is not None:
            found.append((k, climb.ground))
    return found


@pytest.mark.parametrize("height", [3.0, 1e3, 1e9])
def test_one_jump_of_any_height_is_none_without_evidence(height):
    assert climbs([1.0] * 60 + [height] * 200) == []


def test_growth_without_an_end_is_one():
    found = climbs([1.1**k for k in range(400)])
    assert found
    assert {ground for _, ground in found} == {Ground.SPEED}


def test_slow_growth_counts_at_the_edge_alone():
    slow = [1.005**k for k in range(1500)]
    assert climbs(slow) == []
    assert {ground for _, ground in climbs(slow, at_edge=True)} == {Ground.EDGE}


def test_after_steps_that_are_too_large_one_rise_is_enough():
    losses = [1.0] * 60 + [10.0] * 30
    [(at, ground)] = climbs(losses, large_steps=True)
    assert ground is Ground.LARGE_STEPS
    assert 60 <= at < 60 + 2 * RULES.loss_window


def test_a_loss_that_falls_is_never_one():
    assert climbs([1.0 / k for k in range(1, 500)], large_steps=True, at_edge=True) == []
