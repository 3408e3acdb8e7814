"""The learning rates at which a step would have met a limit, against the definition: eta over its ratio."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.rates import RateLimits, edge_source, largest_ratios, rate_limits
from lightning_topo.measurement import Measurement
from lightning_topo.phases import EdgeSource

STEPS = st.integers(0, 20)
RATES = st.dictionaries(STEPS, st.sampled_from([0.0, 0.1, 0.5, math.nan]), max_size=6)
RATIOS = st.lists(st.tuples(STEPS, st.sampled_from("ab"), st.sampled_from([0.0, 0.5, 2.0, math.inf, math.nan])))


def of_training(rates):
    return [Measurement(step, 0, "training", "", {"learning_rate": rate}) for step, rate in rates.items()]


def sharp(step, **values):
    return Measurement(step, 0, "sharpness", "", values)


@given(RATES, RATIOS)
def test_a_step_would_have_been_critical_at_its_rate_over_its_largest_ratio(rates, ratios):
    """Looked up step by step: the last rate that is known, and the largest finite ratio of any group."""
    wanted = {}
    for step in range(21):
        known = [rates[s] for s in sorted(rates) if s <= step and not math.isnan(rates[s])]
        finite = [r for s, _, r in ratios if s == step and math.isfinite(r)]
        if known and known[-1] > 0.0 and finite and max(finite) > 0.0:
            wanted[step] = known[-1] / max(finite)
    measured = [Measurement(s, 0, "distortion", group, {"critical_ratio": r}) for s, group, r in ratios]
    limits = rate_limits([*measured, *of_training(rates)])
    assert dict(limits.critical) == wanted
    assert [step for step, _ in limits.critical] == sorted(wanted)
    for step in range(21):
        known = [rates[s] for s in sorted(rates) if s <= step and not math.isnan(rates[s])]
        assert limits.at(step) == (known[-1] if known else None)


def test_curvature_and_edge_are_of_the_whole_network_and_a_threshold_goes_first():
    found = [*of_training({1: 0.4}), sharp(2, eta_lambda=2.0), sharp(3, directional_ratio=0.8)]
    limits = rate_limits(found)
    assert (limits.curvature, limits.edge) == (((2, 0.2),), ((3, 0.5),))
    assert rate_limits([*found, sharp(4, sharpness_ratio=4.0)]).edge == ((4, 0.1),)
    batches = [Measurement(s, 0, "step_edge", "", {"batch_sharpness_ratio": 0.8}) for s in (5, 6, 7)]
    curved = [*found, sharp(4, sharpness_ratio=4.0)]
    assert rate_limits([*curved, *batches]).edge == ((5, 0.5), (6, 0.5), (7, 0.5))
    assert edge_source([*curved, *batches[:2]]) is EdgeSource.SHARPNESS  # of two batches too few are known
    going_on = [sharp(s, sharpness_ratio=4.0) for s in range(8, 60, 4)]
    assert edge_source([*curved, *batches, *going_on]) is EdgeSource.SHARPNESS  # no batch was looked at any more
    assert edge_source(of_training({1: 0.4})) is None
    of_group = Measurement(5, 0, "sharpness", "net.0", {"eta_lambda": 9.0})
    assert rate_limits([*found, of_group, sharp(6, eta_lambda=math.inf)]).curvature == limits.curvature


def test_without_a_learning_rate_there_are_no_limits():
    assert rate_limits([sharp(1, eta_lambda=1.0), *of_training({1: math.nan, 2: -0.1, 3: math.inf})]) == RateLimits()
    assert RateLimits().largest is None
    assert rate_limits(of_training({1: 0.1, 3: 0.5, 9: 0.2})).largest == 0.5


def test_the_guards_network_wide_ratio_is_no_groups():
    lines = [Measurement(1, 0, "distortion", group, {"critical_ratio": r}) for group, r in (("", 9.0), ("a", 0.5))]
    assert largest_ratios(lines) == {1: 0.5}
