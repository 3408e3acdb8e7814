"""The monitor's share of the time, and the time of a step without it, by a clock that the test sets."""

from types import SimpleNamespace

import pytest

from lightning_topo._watch.budget import EXACT_SHARE, EXACT_STEPS, Allowance, Budget


class Now:
    """A clock that goes on when told."""

    def __init__(self):
        self.time = 100.0

    def passes(self, seconds):
        self.time += seconds

    def fails_after(self, seconds):
        self.time += seconds
        raise ZeroDivisionError


@pytest.fixture
def now(monkeypatch):
    clock = Now()
    monkeypatch.setattr("lightning_topo._clock.time", SimpleNamespace(perf_counter=lambda: clock.time))
    return clock


def test_nested_time_is_charged_once_and_also_where_the_work_fails(now):
    budget = Budget()
    now.passes(6.0)
    with budget.spending():
        now.passes(1.0)
        with budget.spending():
            now.passes(2.0)
        assert budget.spent() == 0.0  # charged when all of it is over
    with pytest.raises(ZeroDivisionError), budget.spending():
        now.fails_after(1.0)
    assert (budget.seconds(), budget.spent(), budget.share()) == (10.0, 4.0, 0.4)


def test_a_step_is_the_median_of_what_steps_take_without_the_monitor(now):
    budget = Budget()
    known = []
    for seconds in (9.0, 2.0, 2.0, 2.0, 50.0, 2.0):
        budget.begin_step()
        now.passes(seconds / 2)
        with budget.spending():
            now.passes(7.0)
        now.passes(seconds / 2)
        budget.end_step()
        known.append(budget.step_seconds)
        with budget.spending():  # between two steps: no part of either
            now.passes(3.0)
    assert known == [None, 5.5, 2.0, 2.0, 2.0, 2.0]


def test_an_end_without_a_beginning_is_no_step(now):
    budget = Budget()
    for _ in range(3):
        budget.end_step()
    assert budget.step_seconds is None


def test_a_clock_that_is_set_back_makes_no_time_negative(now):
    budget = Budget()
    now.passes(2.0)
    for _ in range(2):
        budget.begin_step()
        with budget.spending():
            now.passes(-5.0)
        budget.end_step()
    assert (budget.spent(), budget.step_seconds) == (0.0, 0.0)
    assert budget.seconds() == 2.0
    assert Budget().share() == 0.0


def test_measurements_that_only_bounds_ask_for_are_allowed_a_share_and_a_start(now):
    budget, allowance = Budget(), Allowance(limited=True)
    allowance.spent = 1e6
    assert allowance.allows(budget)  # no step has been timed
    for _ in range(2):
        budget.begin_step()
        now.passes(2.0)
        budget.end_step()
    most = EXACT_SHARE * 4.0 + EXACT_STEPS * 2.0
    allowance.spent = most
    assert allowance.allows(budget)
    assert not allowance.allows(budget, 0.01)  # what one more would take
    allowance.spent = most + 0.01
    assert not allowance.allows(budget)
    now.passes(1.0)
    assert allowance.allows(budget)
    assert Allowance(limited=False, spent=1e6).allows(budget, 1e6)
