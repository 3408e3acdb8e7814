"""What a run came to: counted step by step, and placed between what was measured."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement, StepState
from lightning_topo.outputs.page import verdict
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import EventName, TopologyEvent
from tests.figures.test_coverage import line
from tests.outputs.page.covered import OPENED, ratio, record


def test_a_step_counts_as_its_weakest_group() -> None:
    coverage = history(record(*OPENED)).outcome.coverage
    assert coverage is not None
    assert (coverage.exact, coverage.bounded, coverage.spanned, coverage.open) == (2, 15, 0, 3)
    assert (coverage.certified, coverage.total, coverage.pending) == (17, 20, 0)
    assert coverage.peak_bound is not None
    assert (coverage.peak_bound.value, coverage.peak_bound.group) == (0.4, "b")


def test_recorded_events_of_the_replayed_kinds_are_not_counted_twice(demo: RunRecord, hostile: RunRecord) -> None:
    doubled = replace(demo, events=history(demo).events)
    assert verdict(doubled) == verdict(demo)
    assert {"gap", "probe_failed"} <= {event.name.value for event in history(hostile).events}


def test_an_event_lies_between_the_last_measurement_below_and_the_first_above() -> None:
    estimates = [
        Measurement(step, 0, "sharpness", "", {"eta_lambda": value})
        for step, value in ((10, 0.2), (25, 1.1), (50, 1.4), (75, 1.3))
    ]
    assert "Passed the curvature bound between steps 10 and 25;" in verdict(record(ratio(1, 0.1), *estimates))
    assert "a broke down between steps 12 and 28;" in verdict(record(ratio(12, 0.4), ratio(28, 2.15), ratio(40, 1.2)))


STATES = st.lists(st.sampled_from(StepState), min_size=12, max_size=12)


@given(STATES, STATES, st.integers(0, 3))
def test_every_step_is_counted_once_as_its_weakest_group_has_it(of_a: list, of_b: list, pending: int) -> None:
    bound = {StepState.BOUNDED: 0.3}
    lines = [
        line(k, k + 1, s, bound.get(s), g) for g, states in (("a", of_a), ("b", of_b)) for k, s in enumerate(states)
    ]
    steps = [Measurement(12 + pending, 0, "training", "", {"loss": 1.0})]
    found = history(record(*lines, *steps)).outcome.coverage
    assert found is not None
    weakest = [min(pair) for pair in zip(of_a, of_b, strict=True)]
    counts = [weakest.count(state) for state in (StepState.EXACT, StepState.BOUNDED, StepState.SPANNED, StepState.OPEN)]
    assert [found.exact, found.bounded, found.spanned, found.open] == counts
    assert (found.pending, found.total) == (pending, 12 + pending)
    opened = [k + 1 for k, state in enumerate(weakest) if state is StepState.OPEN]
    assert (None if found.first_open is None else found.first_open.first) == (opened[0] if opened else None)


def test_the_peak_is_the_first_of_the_largest_and_never_nan() -> None:
    ratios = [ratio(1, 0.5), ratio(2, math.nan), ratio(3, 0.9, "b"), ratio(4, 0.9)]
    outcome = history(record(*ratios)).outcome
    assert outcome.peak_ratio is not None
    assert (outcome.peak_ratio.value, outcome.peak_ratio.group, outcome.peak_ratio.step) == (0.9, "b", 3)
    assert outcome.n_ratio_steps == 3
    network = Measurement(5, 0, "distortion", "", {"critical_ratio": 7.0})
    assert history(record(*ratios, network)).outcome.peak_ratio == outcome.peak_ratio


def test_the_first_breakdown_of_each_group_counts_and_those_at_the_first_step_come_first() -> None:
    outcome = history(
        record(ratio(1, 0.1), ratio(5, 1.5, "b"), ratio(5, 2.0, "c"), ratio(9, 3.0), ratio(11, 9.0, "b"))
    ).outcome
    assert [(event.group, event.step) for event in outcome.breakdowns] == [("b", 5), ("c", 5), ("a", 9)]
    assert [event.group for event in outcome.broken_first] == ["b", "c"]
    assert str(outcome.broken_since) == "at step 5"  # nothing is known of b before


def test_a_loss_that_was_not_finite_is_remembered_when_it_is_again() -> None:
    losses = [
        Measurement(step, 0, "training", "", {"loss": loss}) for step, loss in ((1, 1.0), (2, math.nan), (3, 0.5))
    ]
    outcome = history(record(*losses)).outcome
    assert (outcome.nonfinite_loss_step, outcome.diverged_step, outcome.finite_again) == (2, 2, True)
    assert not outcome.has_recovered  # one of three
    assert outcome.final_loss == 0.5
    assert history(record(*losses[:2])).outcome.finite_again is False
    course = {step: 2.0 / step if step != 20 else math.nan for step in range(1, 60)}
    for later, recovered in ((0.1, True), (50.0, False)):  # and does not come back
        whole = course | dict.fromkeys(range(40, 60), later)
        several = (Measurement(step, 0, "training", "", {"loss": loss}) for step, loss in whole.items())
        assert history(record(*several)).outcome.has_recovered is recovered
    empty = history(record()).outcome
    assert (empty.last_step, empty.diverged_step, empty.final_loss, empty.coverage) == (None, None, None, None)


def test_events_of_measurements_and_of_the_engine_are_in_one_order() -> None:
    gap, replayed = TopologyEvent(EventName.GAP, 7, 0), TopologyEvent(EventName.TOPOLOGY_BREAKDOWN, 3, 0, "a")
    found = history(record(ratio(5, 1.5), ratio(9, 2.5, "b"), events=(gap, replayed)))
    assert [(event.name.value, event.step) for event in found.events] == [
        ("topology_breakdown", 5),
        ("gap", 7),
        ("topology_breakdown", 9),
    ]
