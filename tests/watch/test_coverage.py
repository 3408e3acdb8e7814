"""What is known of every step, and its share."""

import itertools
import random
from copy import copy

import pytest

from lightning_topo._watch.coverage import MOST_STEPS, Certificate, Coverage, Shares
from lightning_topo.measurement import OpenCause, StepState

EXACT, BOUNDED, SPANNED, OPEN = StepState.EXACT, StepState.BOUNDED, StepState.SPANNED, StepState.OPEN


def stretches(lines):
    """(from, to, state, bound) of each line."""
    return [(m.values["from"], m.step, StepState(int(m.values["state"])), m.values.get("bound")) for m in lines]


def test_any_sequence_of_states_comes_back_from_its_lines():
    chance = random.Random(0)
    truth = {g: {k: chance.choice(list(StepState)) for k in range(1, 200)} for g in ("a", "b")}
    coverage, lines = Coverage(), []
    for step in range(1, 200):
        coverage.note(step, {g: Certificate(states[step], step / 1000) for g, states in truth.items()})
        if chance.random() < 0.3:
            lines += coverage.lines(0)
    lines += coverage.lines(0, flush=True)
    for group, states in truth.items():
        found, at = {}, 0
        for start, end, state, bound in stretches(m for m in lines if m.group == group):
            assert start == at  # no step twice, none left out
            assert bound is None if state is EXACT else bound >= end / 1000
            found |= dict.fromkeys(range(int(start) + 1, end + 1), state)
            at = end
        assert found == states


def test_a_killed_process_loses_no_more_than_so_many_steps():
    coverage, lines = Coverage(), []
    for step in range(1, 2 * MOST_STEPS + 10):
        coverage.note(step, {"a": Certificate(BOUNDED, 0.1)})
        lines += coverage.lines(0)
    ends = [1, MOST_STEPS + 1, 2 * MOST_STEPS + 1]
    assert [(start, end) for start, end, *_ in stretches(lines)] == list(zip([0, *ends], ends, strict=False))


def test_a_line_ends_where_a_checkpoint_was_saved():
    """Else a run that goes on from there would abandon what is known of the steps before."""
    coverage = Coverage()
    for step in range(1, 6):
        coverage.note(step, {"a": Certificate(BOUNDED, 0.1)})
        if step == 3:
            coverage.cut()
    assert [line[:3] for line in stretches(coverage.lines(0, flush=True))] == [(0, 3, BOUNDED), (3, 5, BOUNDED)]
    coverage.cut()
    assert coverage.lines(0, flush=True) == []


def test_a_reader_need_not_wait_for_the_first_bounded_stretch_or_for_the_end_of_an_open_one():
    coverage = Coverage()
    written = []
    for step, state in enumerate([BOUNDED] * 3 + [OPEN] * 2 + [BOUNDED] * 3 + [EXACT] + [BOUNDED] * 2, start=1):
        coverage.note(step, {"a": Certificate(state)})
        written += [(step, *line[:3]) for line in stretches(coverage.lines(0))]
    assert written == [
        (1, 0, 1, BOUNDED),
        (4, 1, 3, BOUNDED),
        (4, 3, 4, OPEN),
        (6, 4, 5, OPEN),
        (6, 5, 6, BOUNDED),
        (9, 6, 8, BOUNDED),
        (10, 8, 9, EXACT),
    ]


def test_an_open_step_is_written_at_once():
    coverage = Coverage()
    coverage.note(1, {"a": Certificate(EXACT)})
    assert coverage.lines(0) == []
    coverage.note(2, {"a": Certificate(OPEN)})
    assert [line[:3] for line in stretches(coverage.lines(0))] == [(0, 1, EXACT), (1, 2, OPEN)]


def test_a_line_says_why_its_steps_are_open():
    coverage = Coverage()
    for step, cause in enumerate([OpenCause.NOT_MEASURED, OpenCause.NOT_MEASURED, OpenCause.MOVED], start=1):
        coverage.note(step, {"a": Certificate.open(cause)})
    coverage.note(4, {"a": Certificate(EXACT)})
    found = [(m.values["from"], m.step, m.values.get("cause")) for m in coverage.lines(0, flush=True)]
    assert found == [(0, 2, OpenCause.NOT_MEASURED), (2, 3, OpenCause.MOVED), (3, 4, None)]


def test_steps_that_are_left_out_are_in_no_line():
    coverage = Coverage()
    for step in (1, 2, 5):
        coverage.note(step, {"a": Certificate(EXACT)})
    coverage.rest(7, ["a"])  # step 6 is left out
    coverage.note(8, {"a": Certificate(EXACT)})
    assert [line[:2] for line in stretches(coverage.lines(0, flush=True))] == [(0, 2), (4, 5), (7, 8)]


@pytest.mark.parametrize("state", [EXACT, BOUNDED])
def test_steps_in_which_a_group_rests_belong_to_its_next_one(state):
    coverage, lines = Coverage(), []
    for step in range(1, 19):
        if step % 6 == 0:
            coverage.note(step, {"a": Certificate(state if step == 12 else BOUNDED, 0.1)})
        else:
            coverage.rest(step, ["a"])
        lines += coverage.lines(0)
    coverage.rest(18, ["a"])  # of two updates in one step one moves it
    lines += coverage.lines(0, flush=True)
    expected = (
        [(0, 6, BOUNDED), (6, 18, BOUNDED)]
        if state is BOUNDED
        else [(0, 6, BOUNDED), (6, 12, EXACT), (12, 18, BOUNDED)]
    )
    assert [line[:3] for line in stretches(lines)] == expected


@pytest.mark.parametrize("state", [OPEN, SPANNED])
def test_a_rest_is_not_as_open_as_the_steps_around_it(state):
    coverage = Coverage()
    for step in range(1, 10):
        if step in (2, 6, 9):
            coverage.note(step, {"a": Certificate(state)})
        else:
            coverage.rest(step, ["a"])
    found = [line[:3] for line in stretches(coverage.lines(0, flush=True))]
    rests = [(0, 1, BOUNDED), (2, 5, BOUNDED), (6, 8, BOUNDED)]
    assert sorted(found) == sorted([*rests, (1, 2, state), (5, 6, state), (8, 9, state)])


def test_where_a_checkpoint_was_saved_a_rest_is_written_and_a_resume_goes_on_from_there():
    coverage = Coverage()
    coverage.note(1, {"a": Certificate(EXACT)})
    coverage.rest(2, ["a"])
    coverage.rest(3, ["a"])
    coverage.cut()
    assert stretches(coverage.lines(0)) == [(0, 1, EXACT, None), (1, 3, BOUNDED, 0.0)]
    for later in (coverage, Coverage()):
        later.rest(4, ["a"])
        later.note(5, {"a": Certificate(BOUNDED, 0.2)})
        assert stretches(later.lines(0, flush=True)) == [(3, 5, BOUNDED, 0.2)]


def test_a_second_update_of_a_step_changes_no_earlier_one():
    coverage = Coverage()
    coverage.note(1, {"a": Certificate(BOUNDED, 0.1)})
    coverage.note(2, {"a": Certificate(BOUNDED, 0.1)})
    coverage.note(2, {"a": Certificate(OPEN)})
    assert [line[:3] for line in stretches(coverage.lines(0, flush=True))] == [(0, 1, BOUNDED), (1, 2, OPEN)]


def test_of_two_updates_of_a_step_the_weaker_counts_in_any_order():
    for states in ((EXACT, BOUNDED), (BOUNDED, EXACT), (OPEN, EXACT), (EXACT, OPEN)):
        coverage = Coverage()
        for step in range(1, 5):
            coverage.note(step, {"a": Certificate(BOUNDED, 0.1)})
        for state in states:
            coverage.note(5, {"a": Certificate(state, 0.2 if state is BOUNDED else None)})
        found = [line[:3] for line in stretches(coverage.lines(0, flush=True))]
        assert found == [(0, 4, BOUNDED), (4, 5, min(states))] or found == [(0, 5, min(states))]
        assert len({line[1] for line in found}) == len(found)  # a reader keeps one line of a group at a step


@pytest.mark.parametrize("others", [BOUNDED, EXACT])
def test_a_step_of_which_one_update_was_critical_is_exact_and_its_neighbours_are_what_they_were(others):
    around = Certificate(others, 0.1)
    for updates in itertools.permutations(
        [Certificate(EXACT, 5.0), Certificate(BOUNDED, 0.3), Certificate(EXACT, 0.7)]
    ):
        coverage = Coverage()
        for step in range(1, 9):
            for certificate in updates if step == 5 else [around]:
                coverage.note(step, {"a": certificate})
        lines = stretches(coverage.lines(0, flush=True))
        exact = [(0, 4, EXACT, None), (4, 8, EXACT, None)]
        assert lines in (
            [exact, [(0, 8, EXACT, None)]]
            if others is EXACT
            else [[(0, 4, BOUNDED, 0.1), (4, 5, EXACT, None), (5, 8, BOUNDED, 0.1)]]
        )
        assert coverage.take_uncertified() == {}
        assert coverage.take_bounds() == {"a": 5.0}


def test_any_updates_of_any_steps_come_back_as_the_largest_of_each_step():
    chance = random.Random(1)
    for _ in range(100):
        coverage, truth = Coverage(), {}
        for step in range(1, 30):
            updates = []
            for _ in range(chance.choice([1, 1, 2, 3])):
                state = chance.choice([EXACT, BOUNDED, BOUNDED, OPEN, SPANNED])
                r = chance.uniform(0, 3) if state is EXACT else chance.random() if state is BOUNDED else None
                updates.append(Certificate(state, r))
                coverage.note(step, {"a": updates[-1]})
            worst = min(one.state for one in updates)
            exact = max((one.bound for one in updates if one.state is EXACT), default=0.0)
            bound = max((one.bound for one in updates if one.state is BOUNDED), default=-1.0)
            truth[step] = (EXACT if exact > bound else BOUNDED) if worst >= BOUNDED else worst, max(exact, bound)
        found = {}
        for start, end, state, bound in stretches(coverage.lines(0, flush=True)):
            if state is BOUNDED:  # as large as the largest of these steps, and no larger
                assert bound == max(truth[k][1] for k in range(int(start) + 1, end + 1)) < 1
            found |= dict.fromkeys(range(int(start) + 1, end + 1), state)
        assert found == {step: state for step, (state, _) in truth.items()}


def test_the_past_of_a_group_that_is_known_only_now_is_open_and_of_no_other():
    coverage = Coverage()
    coverage.note(6, {"a": Certificate(BOUNDED, 0.1)})
    coverage.take_uncertified()
    for group in "ab":
        coverage.open_past(group, [3, 5], 6, OpenCause.UNKNOWN_NEURONS)
    coverage.note(7, {name: Certificate(EXACT) for name in "ab"})
    found = sorted(line[:3] for line in stretches(coverage.lines(0, flush=True)))
    assert found == [(2, 3, OPEN), (3, 4, BOUNDED), (4, 5, OPEN), (5, 6, BOUNDED), (5, 7, EXACT), (6, 7, EXACT)]
    assert coverage.take_uncertified() == {}


@pytest.mark.parametrize("states", [(SPANNED, OPEN), (OPEN, SPANNED), (EXACT, OPEN)])
def test_a_step_is_as_weak_as_its_weakest_group(states):
    coverage, shares = Coverage(), Shares()
    coverage.note(1, dict(zip("ab", map(Certificate, states), strict=True)))
    shares.take(1, coverage.take_uncertified())
    assert (shares.n_open, shares.n_spanned) == (1, 0)
    assert coverage.take_uncertified() == {}


def test_shares_count_certified_and_spanned_steps():
    shares = Shares()
    assert shares.values() == {}
    shares.take(8, {2: SPANNED, 5: OPEN, 6: OPEN})
    assert shares.values() == {"coverage": 5 / 8, "coverage_span": 1 / 8}
    shares.take(2, {})
    assert shares.values() == {"coverage": 0.7, "coverage_span": 0.1}


def test_what_turns_out_of_an_earlier_step_counts_once():
    shares = Shares()
    shares.take(4, {2: SPANNED, 3: OPEN})
    saved = copy(shares)
    saved.take(1, {5: OPEN})  # for a checkpoint between two exchanges
    shares.take(4, {2: OPEN, 3: SPANNED, 4: OPEN, 5: OPEN})
    assert (shares.n_open, shares.n_spanned) == (4, 0)
    assert shares.values() == {"coverage": 0.5, "coverage_span": 0.0}
    for step in range(9, 5009):
        shares.take(1, {step: OPEN})
    assert shares.n_open == 5004
    assert len(shares._recent) == 1000


def test_where_nothing_certifies_steps_they_are_all_open():
    shares = Shares()
    shares.take(5, {})
    shares.take(15, {}, certifies=False)
    assert shares.values() == {"coverage": 0.25, "coverage_span": 0.0}
