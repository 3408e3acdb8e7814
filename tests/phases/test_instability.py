"""Divergence: a loss that is not finite, climbs without end, or is high beyond the edge, reported once."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.phases import DetectorState, Phase, observe, replay
from lightning_topo.phases._climb import is_steady
from tests.phases.series import losses, names


def ratio(step, value, name="sharpness_ratio"):
    return Measurement(step, 0, "sharpness", "", {name: value})


def test_a_loss_that_is_not_finite_is_an_instability_once():
    assert names(replay(losses([1.0, math.nan, math.nan, math.inf]))) == [("instability", 1)]
    (event,) = replay(losses([math.nan])).detected
    assert event.message == "The loss is nan."
    assert "If the next losses are finite again" in event.remedy  # a batch that was skipped is no divergence
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
    exploding = [3.0 * 2.0**k for k in range(1, 40)]
    # Five losses in a row are above the level four times, at least five losses apart.
    assert names(replay(losses([2.0, 1.5, *[1.0] * 50, *exploding]))) == [("instability", 72)]
    assert names(replay(losses([2.0, *[1.0, 50.0] * 30]))) == [], "a loss that always varies by as much"


def measured(values, ratios=lambda step: None, every=25, name="sharpness_ratio"):
    """A training's losses from step 1 on, and an edge ratio every so many steps."""
    for step, value in enumerate(values, start=1):
        yield from losses([value], step)
        if step % every == 0 and (at := ratios(step)) is not None:
            yield ratio(step, at, name)


@pytest.mark.parametrize("growth", [1.003, 1.01, 1.05])
def test_a_divergence_however_slow_is_found_at_the_edge(growth):
    """Least squares at a learning rate just above 2 / lambda: the level must not follow the loss."""
    growing = [16.0 * growth**k for k in range(int(10 / math.log(growth)))]
    (found,) = [e for e in replay(measured(growing, lambda step: 1.01)).detected if e.name == "instability"][:1]
    assert "at the edge" in found.message or "explodes" in found.message
    assert found.value < 16.0 * 400
    assert "instability" not in dict(names(replay(measured(growing[: len(growing) // 4], lambda step: 1.01))))


@pytest.mark.parametrize("loss_at_chance", [1.0, 2.3, 40.0])
def test_a_divergence_to_a_plateau_is_seen_when_the_ratios_confirm_it(loss_at_chance):
    """The second ratio comes when the recent losses are the plateau's: they are compared with those before."""
    falling = [2.4 * math.exp(-k / 30) + 0.003 for k in range(200)]
    plateau = [loss_at_chance + 0.05 * math.sin(k) for k in range(300)]
    beyond = {200: 1.15, 225: 11.5, 250: 2.8}
    found = replay(
        measured([*falling, *plateau], lambda step: beyond.get(step, 0.5), name="batch_sharpness_ratio")
    ).detected
    (event,) = [e for e in found if e.name == "instability"]
    assert event.step == 251
    assert "far above where it stood before, and the edge ratio is 2.8" in event.message


def test_of_two_sources_the_one_that_decides_gives_the_ratios():
    """The sharpness of many samples, which comes with each batch ratio, is far below its own threshold."""
    rising = [2.0] * 60 + [2.0 + 0.1 * k for k in range(1, 60)]
    lines = []
    for m in measured(rising, lambda step: 3.0, every=10, name="batch_sharpness_ratio"):
        lines += [m] if m.probe == "training" else [ratio(m.step, 0.02), m]
    assert [step for name, step in names(replay(lines)) if name == "instability"] == [65]


def gauss(scale, seed=0, size=600):
    draw = random.Random(seed)
    return [draw.gauss(0.0, scale) for _ in range(size)]


HEALTHY = {
    "a policy's KL that begins at 0": [
        1e-9,
        *(0.05 * (1 - math.exp(-k / 200)) + abs(n) for k, n in enumerate(gauss(1e-4))),
    ],
    "a KL that grows as a square": [1e-9 + 1e-6 * k**2 for k in range(600)],
    "a rare reward found late": [
        (1e-4 if k < 300 else 0.05) * math.exp(n) for k, n in enumerate(gauss(0.5, size=1000))
    ],
    "a harder task": [
        0.002 + abs(n) if k < 300 else 5.0 * math.exp(-(k - 300) / 150) for k, n in enumerate(gauss(1e-4))
    ],
    "a loss switched on": [0.2 + n + (2.3 if k >= 200 else 0.0) for k, n in enumerate(gauss(0.01))],
    "a loss of 0, then none": [0.0] * 100 + [1.0 * math.exp(-k / 50) for k in range(300)],
    "a term ramped in": [0.06 + abs(n) + 10.0 * min(max(k - 200, 0) / 10, 1.0) for k, n in enumerate(gauss(0.01))],
    "a negative loss": [5 - 25 * (1 - math.exp(-k / 100)) + n for k, n in enumerate(gauss(0.5))],
    "a loss that drifts through 0": [-0.01 + 0.01 * k + n for k, n in enumerate(gauss(0.02))],
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("at", [None, 0.3, 1.01])
def test_a_loss_that_rises_by_its_nature_is_no_instability(name, at):
    """Even at the edge a jump is one rise, and growth that slows down is none that diverges."""
    seen = names(replay(measured(HEALTHY[name], lambda step: at)))
    assert "instability" not in dict(seen)


@given(
    st.lists(st.floats(0.1, 1.0), min_size=60, max_size=60),
    st.sampled_from([1.0, 1e3, 1e12]),
    st.lists(st.floats(0.5, 1.0), min_size=80, max_size=80),
)
def test_a_jump_of_any_height_to_a_new_level_is_no_instability_without_evidence(before, height, after):
    assert names(replay(losses([*before, *(height * x for x in after)]))) == []


@given(st.lists(st.floats(0.0, 2.0), min_size=20, max_size=120), st.floats(1e-3, 1e3))
def test_the_unit_of_the_loss_does_not_matter(values, unit):
    """But for rounding, which a power of two has none of."""
    scale = 2.0 ** round(math.log2(unit))
    at = dict.fromkeys(range(0, 200, 10), 1.7)
    here, there = (replay(measured([s * v for v in values], at.get, every=10)).detected for s in (1.0, scale))
    assert [(e.name, e.step) for e in here] == [(e.name, e.step) for e in there]


@given(
    st.lists(st.floats(1e-3, 1e3) | st.sampled_from([math.nan, math.inf]), max_size=150),
    st.lists(st.floats(0.5, 3.0), min_size=150, max_size=150),
)
def test_the_memory_is_bounded_and_events_are_apart(values, at):
    state, steps = DetectorState(), []
    for m in measured(values, lambda step: at[step - 1], every=3):
        state, events = observe(state, m)
        steps += [e.step for e in events if e.name == "instability"]
    assert len(state.stability.losses) <= 55
    assert len(state.stability.climb.rises) <= 4
    assert all(later - earlier > 5 for earlier, later in pairwise(steps))


def test_a_jump_after_steps_that_were_too_large_is_an_instability_at_once():
    calm, high = [0.5 + 0.01 * (k % 3) for k in range(100)], [300.0 - k for k in range(50)]
    jump = losses([*calm, *high])
    critical = Measurement(99, 0, "distortion", "net.0", {"critical_ratio": 1.7})
    assert names(replay(jump)) == []
    # What is measured after step 99 belongs to the step that made the loss jump.
    assert ("instability", 104) in names(replay([*jump[:100], critical, *jump[100:]]))
    assert ("instability", 104) in names(replay([*jump[:100], ratio(99, 30.0), *jump[100:]]))
    assert "instability" not in dict(names(replay([*jump[:100], ratio(99, 1.2), *jump[100:]])))


def test_a_loss_that_jumps_in_a_breakdown_need_not_exceed_the_first():
    learning, unlearnt = [5.0 * 0.95**k + 0.05 * (k % 3) for k in range(100)], [4.9 + 0.02 * (k % 5) for k in range(60)]
    run = losses([*learning, *unlearnt])
    critical = Measurement(100, 0, "distortion", "net.0", {"critical_ratio": 1.7})
    assert names(replay(run)) == []
    assert names(replay([*run[:101], critical, *run[101:]])) == [("topology_breakdown", 100), ("instability", 104)]
    # Before the jump: a breakdown alone is none, nor is a loss that stays within its noise.
    assert names(replay([*run[:60], replace(critical, step=60), *run[60:100]])) == [("topology_breakdown", 60)]
    noisy = losses([1.0, 1.4, 1.1, 1.3, 1.4, 1.4, 1.4] * 20)
    assert names(replay([*noisy[:60], replace(critical, step=60), *noisy[60:]])) == [("topology_breakdown", 60)]


def test_a_training_that_explodes_from_its_first_step_on_is_measured_by_its_first_loss():
    first = Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 9.0})
    assert names(replay([*losses([2.3]), first, *losses([1e4] * 30, 1)]))[1:] == [("instability", 5)]


def test_an_instability_is_the_same_in_one_state_machine_and_by_groups():
    """A breakdown of any group counts for the loss of the network."""
    jump = losses([*[0.5] * 40, *[300.0] * 9])
    critical = Measurement(39, 0, "distortion", "net.0", {"critical_ratio": 1.7})
    state, events = DetectorState(), []
    for m in [*jump[:40], critical, *jump[40:]]:
        state, new = observe(state, m)
        events += new
    run = replay([*jump[:40], critical, *jump[40:]])
    assert tuple(events) == run.detected
    assert state == run.state


@given(st.floats(1.0, 2.0), st.lists(st.integers(5, 60), min_size=1, max_size=5))
def test_equal_times_are_steady_and_later_and_later_ones_are_not(slower, taken):
    assert is_steady([0, *(taken[0] * k for k in range(1, 5))])
    later = [0, 10, 10 + round(10 * (0.3 + slower))]
    assert not is_steady(later)
    assert not is_steady([0, *(sum(taken[: k + 1]) for k in range(len(taken)))], longest=max(taken) - 1)


def test_an_instability_is_over_after_calm_values_and_can_come_again():
    calm = losses([1.0] * 5, 1)
    assert names(replay([*losses([math.nan]), *calm, *losses([math.nan], 6)])) == [
        ("instability", 0),
        ("instability", 6),
    ]
    assert names(replay([*losses([math.nan]), *calm[:4], *losses([math.nan], 6)])) == [("instability", 0)]
