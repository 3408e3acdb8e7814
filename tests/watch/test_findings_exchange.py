"""What was found since the last exchange is reported once, in order, and with what follows from it."""

import math

import pytest

from lightning_topo import Distortion
from lightning_topo._watch.budget import Budget
from lightning_topo._watch.coverage import Certificate, Coverage, Shares
from lightning_topo._watch.findings_exchange import EXCHANGE_STEPS, Exchange
from lightning_topo._watch.outcome import Failure, FailureKind, Outcome
from lightning_topo._watch.output import Run
from lightning_topo._watch.probing import Probing
from lightning_topo._watch.published_values import Readings
from lightning_topo._watch.reporting import Reporting
from lightning_topo._watch.schedule import Schedule
from lightning_topo.measurement import GLOBAL, StepState
from lightning_topo.phases import DetectorState, EventName, PhaseRules, TopologyEvent
from lightning_topo.probes import Period
from tests.watch.driving import GROUPS, Kept, training_of, two_layers


class Mine:
    name = "mine"

    def measure(self, capture):
        return {}


class Exchanged:
    """One process's exchange, and the output that it reports to."""

    def __init__(self):
        self.kept = Kept()
        training = training_of(two_layers())
        self.coverage = Coverage()
        self.reporting = Reporting(self.kept, DetectorState(), PhaseRules())
        self.readings = Readings([group.name for group in GROUPS])
        self.reporting.start(Run(GROUPS, self.readings, {}))
        probes = [Distortion(), Mine()]
        schedule = Schedule({probe.name: Period(5) for probe in probes})
        probing = Probing(probes, training.ranks, {group.name: k for k, group in enumerate(GROUPS)})
        self.exchange = Exchange(training, self.reporting, probing, schedule, Budget(), Shares())
        self.schedule = schedule

    def run(self, step, *outcomes, **options):
        self.exchange.outcomes += outcomes
        self.exchange.run(step, self.coverage, **options)

    @property
    def events(self):
        return [(str(event.name), event.step, event.group, event.message) for event in self.kept.events]


@pytest.fixture
def exchanged():
    return Exchanged()


def test_it_is_time_after_a_measurement_every_so_often_and_alone_on_any_news(exchanged):
    exchange, coverage = exchanged.exchange, exchanged.coverage
    assert exchange.is_due(3, coverage, measured=True)
    assert exchange.is_due(EXCHANGE_STEPS, coverage, measured=False)
    assert not exchange.is_due(3, coverage, measured=False)
    exchange.losses.note(3, 0.5)
    assert not exchange.is_due(3, coverage, measured=False)
    exchange.losses.note(4, math.nan)
    assert exchange.is_due(4, coverage, measured=False)
    exchanged.run(4)
    assert not exchange.is_due(5, coverage, measured=False)
    coverage.note(5, {"0": Certificate(StepState.OPEN)})
    assert exchange.is_due(5, coverage, measured=False)
    exchanged.run(5)
    exchange.events.append(TopologyEvent(EventName.GAP, 6, 0))
    assert exchange.is_due(6, coverage, measured=False)


def test_losses_come_for_every_step_and_rates_where_they_change(exchanged):
    for step, rate in ((1, 0.1), (2, 0.1), (3, 0.2)):
        exchanged.exchange.losses.note(step, 1.0 / step)
        exchanged.exchange.rates.note(step, rate)
    exchanged.run(3)
    assert exchanged.kept.of("training") == [
        (1, "", {"loss": 1.0, "learning_rate": 0.1}),
        (2, "", {"loss": 0.5}),
        (3, "", {"loss": 1.0 / 3, "learning_rate": 0.2}),
    ]
    assert exchanged.readings.latest("topology/learning_rate") == 0.2
    exchanged.run(4)
    assert len(exchanged.kept.of("training")) == 3


def test_the_critical_rate_is_the_rate_over_the_largest_ratio_of_that_step(exchanged):
    exchanged.exchange.rates.note(2, 0.3)
    exchanged.exchange.rates.note(3, 9.0)
    values = {"0": {"critical_ratio": 0.5}, "2": {"critical_ratio": 0.75}}
    exchanged.run(3, Outcome("distortion", 2, 0, values))
    assert exchanged.readings.latest("topology/critical_learning_rate") == pytest.approx(0.3 / 0.75)
    assert [(step, group) for step, group, _ in exchanged.kept.of("distortion")] == [(2, "0"), (2, "2")]


@pytest.mark.parametrize("values", [{"0": {"critical_ratio": 0.0}}, {"0": {"critical_ratio": math.nan}}, {}])
def test_without_a_ratio_above_zero_there_is_no_critical_rate(exchanged, values):
    exchanged.exchange.rates.note(2, 0.3)
    exchanged.run(2, Outcome("distortion", 2, 0, values))
    assert exchanged.readings.latest("topology/critical_learning_rate") is None


def test_a_failure_is_an_event_once_until_the_probe_succeeds_again(exchanged):
    failed = Failure("no room", "Buy some.")
    for step in (1, 2):
        exchanged.run(step, Outcome("mine", step, 0, failure=failed))
    exchanged.run(3, Outcome("mine", 3, 0, {GLOBAL: {"size": 1.0}}))
    exchanged.run(4, Outcome("mine", 4, 0, failure=failed))
    assert exchanged.events == [("probe_failed", step, "", "mine failed: no room") for step in (1, 4)]
    assert {event.remedy for event in exchanged.kept.events} == {"Buy some."}


def test_a_group_or_a_value_that_fails_is_named_and_the_others_are_reported(exchanged):
    def outcome(step, **problems):
        return Outcome("mine", step, 0, {"0": {"size": 1.0}}, **problems)

    exchanged.run(1, outcome(1, problems={"2": "torn"}, refused={"name": "expected a number"}))
    exchanged.run(2, outcome(2, problems={"2": "torn"}, refused={"name": "expected a number"}))
    assert exchanged.events == [
        ("probe_failed", 1, "2", "mine could not measure 2: torn"),
        ("probe_failed", 1, "", "A value of mine is not recorded: expected a number."),
    ]
    assert exchanged.kept.of("mine") == [(1, "0", {"size": 1.0}), (2, "0", {"size": 1.0})]


def test_a_lost_result_is_a_gap_each_time_and_a_probe_that_cannot_measure_is_switched_off(exchanged):
    for step in (1, 2):
        exchanged.run(step, Outcome("mine", step, 0, failure=Failure("the worker died", kind=FailureKind.LOST)))
    exchanged.run(3, Outcome("mine", 3, 0, failure=Failure("no loss", kind=FailureKind.UNAVAILABLE)))
    assert [(name, step) for name, step, _, _ in exchanged.events] == [("gap", 1), ("gap", 2), ("probe_failed", 3)]
    assert exchanged.events[-1][-1] == "mine is switched off: no loss"


def test_what_a_guard_has_held_stands_beside_what_measures_steps_and_nothing_else(exchanged):
    exchanged.exchange.proposed["0"] = 1.7
    values = {"0": {"critical_ratio": 0.9}, "2": {"critical_ratio": 0.1}}
    exchanged.run(1, Outcome("distortion", 1, 0, values), Outcome("mine", 1, 0, {"0": {"size": 1.0}}))
    assert exchanged.kept.of("distortion") == [
        (1, "0", {"critical_ratio": 0.9, "proposed_critical_ratio": 1.7}),
        (1, "2", {"critical_ratio": 0.1}),
    ]
    assert exchanged.kept.of("mine") == [(1, "0", {"size": 1.0})]


def test_shares_count_every_step_once_and_bounds_are_published(exchanged):
    exchanged.coverage.note(2, {"0": Certificate(StepState.OPEN), "2": Certificate(StepState.BOUNDED, 0.25)})
    exchanged.run(4)
    exchanged.run(10)
    assert exchanged.exchange.shares.values() == {"coverage": 0.9, "coverage_span": 0.0}
    assert exchanged.readings.latest("topology/2/critical_ratio_bound") == 0.25


def test_an_event_that_was_met_twice_is_one(exchanged):
    event = TopologyEvent(EventName.OUTSIDE_CHANGE, 1, 0, "0")
    exchanged.exchange.events += [event, event, TopologyEvent(EventName.OUTSIDE_CHANGE, 2, 0, "0")]
    exchanged.run(2)
    assert [(name, step) for name, step, _, _ in exchanged.events] == [("outside_change", 1), ("outside_change", 2)]


def test_a_step_in_which_neurons_may_have_met_asks_for_haste_until_one_in_which_they_did_not(exchanged):
    def after(step, **values):
        exchanged.run(step, Outcome("distortion", step, 0, {"0": {"critical_ratio": 0.1} | values}))
        return exchanged.schedule.hastened

    assert after(1) == set()
    assert after(2, span_ratio=1.5) == {"distortion"}
    assert after(3, span_ratio=0.5) == set()
    assert after(4, span_ratio=math.nan) == {"distortion"}


def test_of_a_validation_what_has_a_name_of_the_records_own_is_left_out(exchanged):
    exchanged.exchange.validated(7, {"val_loss": 0.5, "epoch": 3.0})
    exchanged.exchange.validated(8, {"step": 8.0})
    assert exchanged.kept.of("validation") == [(7, "", {"val_loss": 0.5})]
