"""Phases followed group by group are those of the one state machine, and stay few."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import DetectorState, Phase, observe, replay
from lightning_topo.phases._following import PhaseFollower, collapsed
from tests.phases.series import in_any_order


def one_machine(measurements):
    """The definition: one state for all groups, and every group's phase looked at behind every measurement."""
    state, events, changes = DetectorState(), [], {GLOBAL: []}
    for measurement in measurements:
        state, new = observe(state, measurement)
        events += new
        changes.setdefault(measurement.group, [])
        for group, series in changes.items():
            phase = state.phase if group == GLOBAL else state.phase_of(group)
            if phase is (series[-1][1] if series else Phase.UNKNOWN):
                continue
            if series and series[-1][0] == measurement.step:
                series.pop()
            if not series or series[-1][1] is not phase:
                series.append((measurement.step, phase))
    return tuple(events), {group: tuple(series) for group, series in changes.items()}, state


NUMBERS = st.sampled_from([0.1, 0.5, 0.9, 1.0, 1.1, 3.0, float("inf"), float("nan")])
GROUPS = st.sampled_from(["a", "b", "c"])


def lines(probe, groups, **values):
    return st.tuples(st.just(probe), groups, st.fixed_dictionaries(values))


@st.composite
def a_training(draw):
    kinds = st.one_of(
        lines("distortion", GROUPS, critical_ratio=NUMBERS),
        lines("distortion", GROUPS, distinct_neurons=NUMBERS),
        lines(
            "distortion",
            GROUPS,
            critical_ratio=st.sampled_from([0.1, 0.2, 1.5]),
            distinct_neurons=st.sampled_from([7.0, 8.0]),
            total_contraction=st.sampled_from([0.0, 0.5]),
            twins_split=st.sampled_from([0.0, 1.0]),
        ),
        lines("distortion", GROUPS, critical_ratio=st.just(0.1), contraction=NUMBERS, distinct_neurons=st.just(8.0)),
        lines("sharpness", st.just(""), sharpness_ratio=NUMBERS),
        lines("sharpness", st.just(""), eta_lambda=NUMBERS),
        lines("training", st.just(""), loss=NUMBERS),
        lines("coverage", GROUPS, state=st.integers(0, 3).map(float), bound=NUMBERS),
    )
    found, step = [], 0
    for probe, group, values in draw(st.lists(kinds, min_size=1, max_size=60)):
        step += draw(st.integers(0, 3))
        values |= {"from": max(0.0, step - 2.0)} if probe == "coverage" else {}
        found.append(Measurement(step, 0, probe, group, values))
    return found


@settings(max_examples=50)
@given(a_training())
def test_it_is_the_one_state_machine(measurements):
    seen = replay(measurements)
    events, phases, state = one_machine(measurements)
    assert repr(seen.detected) == repr(events)
    assert dict(seen.phases) == phases
    assert in_any_order(seen.state) == in_any_order(state)


def test_a_phase_that_flaps_for_ever_is_a_bounded_list_in_which_no_breakdown_is_lost(monkeypatch):
    monkeypatch.setattr("lightning_topo.phases._following._MOST_CHANGES", 200)
    follower = PhaseFollower(observe)
    for step in range(6_000):
        ratio = 2.0 if step % 40 == 7 else 0.1
        follower.take(Measurement(step, 0, "distortion", "a", {"critical_ratio": ratio}))
    assert len(follower.phases["a"]) <= 200
    assert sum(phase is Phase.BREAKDOWN for _, phase in follower.phases["a"]) >= 1


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(list(Phase))), min_size=1, unique_by=lambda c: c[0]).map(
        sorted
    ),
    st.sampled_from([1, 2, 8, 64]),
)
def test_columns_claim_nothing_that_some_of_their_steps_do_not(changes, width):
    def at(series, step):
        return next((phase for begin, phase in reversed(series) if begin <= step), None)

    seen = collapsed(changes, width)
    for step in range(changes[0][0], 220):
        truth, shown = at(changes, step), at(seen, step)
        assert shown is not Phase.PRESERVED or truth is Phase.PRESERVED
        assert truth is not Phase.BREAKDOWN or shown is Phase.BREAKDOWN
    assert at(seen, 10**6) is changes[-1][1]
