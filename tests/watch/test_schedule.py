"""When probes measure: fixed periods, and random times that a budget allows."""

import itertools

import pytest

from lightning_topo._watch.schedule import Schedule, Slot
from lightning_topo.probes import Period

ADAPTIVE = Period(25, adaptive=True)


def times(schedule, name, steps, *, seconds=1.0, cost=1.0):
    """The steps at which an adaptive probe measures, when each measurement costs so much."""
    found = []
    for step in range(1, steps + 1):
        if schedule.is_due(name, "step", step):
            found.append(step)
            schedule.spent(name, cost)
        schedule.slots = schedule.plan(step, seconds)
    return found


@pytest.mark.parametrize("overhead", [0.02, None])
def test_a_number_is_obeyed_exactly_whatever_the_budget(overhead):
    schedule = Schedule({"a": Period(7), "b": Period(2, "epoch")}, overhead)
    found = times(schedule, "a", 50, cost=1e6)
    assert found == [7, 14, 21, 28, 35, 42, 49]
    assert [k for k in range(1, 7) if schedule.is_due("b", "epoch", k)] == [2, 4, 6]
    assert not schedule.is_due("b", "step", 2)
    assert not schedule.is_due("a", "epoch", 7)


def test_without_a_budget_an_adaptive_period_is_a_fixed_one():
    assert times(Schedule({"a": ADAPTIVE}, None), "a", 100) == [25, 50, 75, 100]


@pytest.mark.parametrize("cost", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 3])
def test_measurements_take_no_more_than_their_share(cost, n):
    names = [f"p{k}" for k in range(n)]
    steps = 6000
    schedule = Schedule(dict.fromkeys(names, ADAPTIVE), 0.02, dense=frozenset(names))
    found = times(schedule, "p0", steps, cost=cost)
    late = [step for step in found if step > 500]
    share = len(late) * cost / (steps - 500)
    assert share <= 0.02 / n * 1.05
    assert share >= 0.02 / n * 0.9  # and not much less: the budget is there to be used


def test_each_slot_has_one_time_in_it_and_slots_follow_each_other():
    schedule = Schedule({"a": ADAPTIVE}, 0.1)
    seen: list[Slot] = []
    for step in range(1, 1500):
        if schedule.is_due("a", "step", step):
            schedule.spent("a", 1.0)
        schedule.slots = schedule.plan(step, 1.0)
        if not seen or schedule.slots["a"] != seen[-1]:
            seen.append(schedule.slots["a"])
    assert len(seen) > 40
    guessed, known = seen[0], seen[1]
    assert known.start == guessed.at + 1  # from the first measurement on the cost is known
    assert known.stride < guessed.stride
    for slot, following in itertools.pairwise(seen[1:]):
        assert slot.start <= slot.at < slot.end
        assert following.start == slot.end


def test_times_do_not_alias_with_what_repeats():
    """Every second step is another's: each is met about as often."""
    found = times(Schedule({"a": ADAPTIVE}, 0.1), "a", 6000)
    odd = sum(step % 2 for step in found)
    assert len(found) > 200
    assert 0.4 < odd / len(found) < 0.6


def test_times_are_the_seed_s_and_differ_between_seeds_and_probes():
    periods = {"a": ADAPTIVE, "b": ADAPTIVE}
    one, same, other = (times(Schedule(periods, 0.1, seed=seed), "a", 2000) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one != times(Schedule(periods, 0.1, seed=1), "b", 2000)


def test_a_long_planned_run_spreads_measurements_and_a_dense_probe_does_not():
    cheap = {"cost": 1e-9}
    spread = times(Schedule({"a": ADAPTIVE}, 0.1, planned_steps=2560), "a", 2560, **cheap)
    assert 105 <= len(spread) <= 136
    dense = times(Schedule({"a": ADAPTIVE}, 0.1, planned_steps=1000, dense=frozenset("a")), "a", 1000, **cheap)
    assert dense[-800:] == list(range(201, 1001))


def test_a_short_run_does_not_pay_for_a_long_one():
    schedule = Schedule({"a": ADAPTIVE, "b": ADAPTIVE}, 0.02)
    schedule.expect("a", 100.0)
    schedule.slots = schedule.plan(3, 1.0)
    assert schedule.slots["a"].at > 100 / 0.01
    assert schedule.slots["b"].at > 12 / 0.01


def test_a_probe_that_works_like_another_is_taken_to_cost_as_much():
    for known, n_slots in (([], 1), ([20.0, 30.0, 25.0], 0)):
        schedule = Schedule(dict.fromkeys("abcde", ADAPTIVE), 0.02, planned_steps=400)
        schedule.expect("a", 4.0, like="b")
        for seconds in known:
            schedule.spent("b", seconds)
        schedule.slots = schedule.plan(5, 1.0)
        assert (schedule.slots["a"].at < 400) == n_slots


@pytest.mark.parametrize("seed", range(5))
def test_what_is_cheap_beside_the_planned_run_measures_once_in_it(seed):
    periods = dict.fromkeys(["cheap", "dear", *"abc"], ADAPTIVE)
    schedule = Schedule(periods, 0.02, seed, planned_steps=400, guesses={"cheap": 6.0, "dear": 9.0})
    found = times(schedule, "cheap", 400, cost=6.0)
    assert len(found) in (1, 2)
    assert 400 // 3 < found[0] <= 400
    assert times(Schedule(periods, 0.02, seed, planned_steps=400, guesses={"dear": 9.0}), "dear", 400, cost=9.0) == []
    # Where nobody knows how long the run will be, it is not known to be cheap.
    assert times(Schedule(periods, 0.02, seed, guesses={"cheap": 6.0}), "cheap", 400, cost=6.0) == []


@pytest.mark.parametrize("step", range(1, 60))
def test_how_long_until_a_probe_measures(step):
    schedule = Schedule({"a": ADAPTIVE, "b": Period(7), "c": Period(1, "epoch")}, 0.1)
    assert schedule.steps_until("b", step) == next(k for k in range(8) if schedule.is_due("b", "step", step + k))
    assert schedule.steps_until("a", step) is None
    assert schedule.steps_until("c", step) == 0  # whenever the epoch ends
    schedule.slots["a"] = Slot(1, 50, 30)
    assert schedule.steps_until("a", step) == (30 - step if step <= 30 else None)


def test_nothing_is_planned_before_a_step_s_time_is_known():
    schedule = Schedule({"a": ADAPTIVE}, 0.1)
    assert schedule.plan(1, None) == {}
    assert schedule.plan(3, 1.0).keys() == {"a"}


@pytest.mark.parametrize("overhead", [0.0, 1.0, -0.1, 2.0])
def test_an_overhead_out_of_range_is_refused(overhead):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Schedule({}, overhead)
