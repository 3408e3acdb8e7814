"""Periods: numbers are obeyed, "auto" is widened to the budget and no further."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.probes import Distortion, Pacer, Period, Persistence, Sharpness
from lightning_topo.probes.pacing import widened

loads = st.dictionaries(st.text("abcdef", min_size=1), st.floats(1e-6, 1e3), min_size=1, max_size=5)


@given(loads, st.floats(1e-6, 1e4))
def test_widened_loads_fit_the_budget_and_fill_it(loads, budget):
    factors = widened(loads, budget)
    assert all(factor >= 1.0 for factor in factors.values())
    total = sum(loads[name] / factors[name] for name in loads)
    assert total <= budget * (1 + 1e-9) or total == pytest.approx(budget)
    if sum(loads.values()) > budget:
        assert total == pytest.approx(budget)
    else:
        assert set(factors.values()) == {1.0}


@given(loads, st.floats(1e-6, 1e4))
def test_a_cheaper_probe_is_never_widened_more(loads, budget):
    factors = widened(loads, budget)
    for a in loads:
        for b in loads:
            if loads[a] < loads[b]:
                assert factors[a] <= factors[b] * (1 + 1e-9)


def paced(periods, costs, step_seconds, max_overhead=0.02):
    pacer = Pacer(periods, max_overhead)
    for name, cost in costs.items():
        pacer.spent(name, cost)
    pacer.repace(step_seconds, steps_per_epoch=10)
    return pacer.every


def test_numbers_are_obeyed_and_auto_yields():
    every = paced({"fixed": Period(1), "auto": Period(1, adaptive=True)}, {"fixed": 1.0, "auto": 1.0}, 1.0)
    assert every["fixed"] == 1
    # The fixed one has overdrawn the budget: a tenth of 0.02/0.98 is left.
    assert every["auto"] == pytest.approx(10 * 49, abs=1)


def test_overhead_is_a_share_of_the_whole_wall_time():
    every = paced({"auto": Period(1, adaptive=True)}, {"auto": 1.0}, 1.0, max_overhead=0.5)
    assert every["auto"] == 1
    assert paced({"auto": Period(1, adaptive=True)}, {"auto": 3.0}, 1.0, max_overhead=0.25)["auto"] == 9


def test_epochs_count_by_their_steps():
    every = paced({"auto": Period(1, "epoch", adaptive=True)}, {"auto": 20.0}, 1.0, max_overhead=0.5)
    assert every["auto"] == 2


def test_nothing_moves_without_a_limit_or_a_measurement():
    assert paced({"auto": Period(5, adaptive=True)}, {"auto": 100.0}, 1.0, max_overhead=None) == {"auto": 5}
    assert paced({"auto": Period(5, adaptive=True)}, {}, 1.0) == {"auto": 5}


def test_one_slow_call_is_no_measure():
    pacer = Pacer({"auto": Period(1, adaptive=True)}, 0.5)
    for cost in (100.0, 0.1, 0.1):
        pacer.spent("auto", cost)
    pacer.repace(1.0, 10)
    assert pacer.every == {"auto": 1}


def test_periods_narrow_again_but_never_below_the_start():
    pacer = Pacer({"auto": Period(25, adaptive=True)}, 0.5)
    pacer.spent("auto", 1000.0)
    pacer.repace(1.0, 10)
    assert pacer.every["auto"] == 1000
    for _ in range(9):
        pacer.spent("auto", 0.001)
    pacer.repace(1.0, 10)
    assert pacer.every["auto"] == 25


def test_due():
    pacer = Pacer({"a": Period(10), "b": Period(2, "epoch")})
    assert [step for step in range(1, 31) if pacer.due("a", "step", step)] == [10, 20, 30]
    assert [epoch for epoch in range(1, 7) if pacer.due("b", "epoch", epoch)] == [2, 4, 6]
    assert not pacer.due("b", "step", 2)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "often", None])
def test_periods_that_are_none_say_so(every):
    for probe in (Distortion, Sharpness):
        with pytest.raises((ValueError, TypeError), match=r"period|number|every_n_steps"):
            probe(every_n_steps=every)


@pytest.mark.parametrize(
    ("probe", "period"),
    [
        (Distortion(), Period(1, adaptive=True)),
        (Sharpness(), Period(25, adaptive=True)),
        (Persistence(), Period(1, "epoch", adaptive=True)),
        (Persistence(every_n_epochs=3), Period(3, "epoch")),
        (Persistence(every_n_steps=20), Period(20)),
    ],
)
def test_the_periods_of_the_probes(probe, period):
    assert probe.period == period


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_the_share_is_a_fraction(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Pacer({}, share)
