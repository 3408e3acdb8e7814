"""What the page says of steps that were not measured exactly."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_topo import read_record
from lightning_topo._figures.rates import rate_limits
from lightning_topo.measurement import Measurement, OpenCause, StepState
from lightning_topo.outputs._terminal import summary
from lightning_topo.outputs.page import recommendation, render_page, verdict
from lightning_topo.outputs.page._certificates import certificate_table
from lightning_topo.outputs.page._facts import facts
from lightning_topo.outputs.page._model import Budget, run_view
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.page._verdict import tone
from lightning_topo.outputs.record import RecordWriter
from lightning_topo.phases import EventName, Phase, Severity, TopologyEvent
from tests.figures.test_coverage import line
from tests.outputs.page.covered import BOUNDED, CERTIFIED, EXACT, OPENED, SPANS, ratio, record

NAN_LOSS = Measurement(7, 0, "training", "", {"loss": math.nan})
NOTE = TopologyEvent(EventName.UNWATCHED_PARAMETERS, 1, 0, severity=Severity.INFO, message="One.", remedy="Nothing.")


@pytest.mark.parametrize(
    ("measurements", "said", "colour"),
    [
        (
            CERTIFIED,
            "Topology preserved over 12 steps: r was measured up to 0.16 and stayed below 0.32 by bound; "
            "12 of 12 steps certified: 2 exact, 10 by bound",
            Phase.PRESERVED,
        ),
        (
            OPENED,
            "Nothing is known of 3 of 20 steps, the first is step 13; "
            "r was measured up to 0.16 and stayed below 0.41 by bound in the certified steps; "
            "17 of 20 steps certified: 2 exact, 15 by bound; 3 open",
            Phase.UNKNOWN,
        ),
        (
            SPANS,
            "r is not known in 3 of 15 steps, though no neurons merged for good; "
            "r was measured up to 0.16 and stayed below 0.32 by bound in the certified steps; "
            "12 of 15 steps certified: 2 exact, 10 by bound; 3 spanned",
            Phase.UNKNOWN,
        ),
        (
            (*CERTIFIED, Measurement(14, 0, "training", "", {"loss": 1.0})),
            "Topology preserved over 12 steps: r was measured up to 0.16 and stayed below 0.32 by bound in the "
            "certified steps; 12 of 14 steps certified: 2 exact, 10 by bound; 2 not recorded yet",
            Phase.PRESERVED,
        ),
    ],
)
def test_the_verdict_counts_what_is_certified(measurements: tuple[Measurement, ...], said: str, colour: Phase) -> None:
    run = record(*measurements)
    assert verdict(run) == f"{said} \u2013 no events"
    assert tone(history(run).outcome) is colour
    assert f'class="phase-{colour.name.lower()}"' in render_page([run])


def test_the_verdict_says_why_steps_are_open() -> None:
    said = verdict(record(*CERTIFIED, because(12, 13, OpenCause.MOVED), because(13, 20, OpenCause.NOT_MEASURED)))
    assert said.startswith(
        "Nothing is known of 8 of 20 steps, the first is step 13 (something else moved parameters before r was "
        "measured; r may be 1 or more, and to measure it takes too long); r was"
    )


def test_of_groups_too_large_to_measure_the_advice_is_not_to_measure_them() -> None:
    run = record(*CERTIFIED, because(12, 20, OpenCause.TOO_MANY))
    assert "r of more than 20,000 neurons is only bounded, and the bound is not below 1" in verdict(run)
    assert "Distortion(every_n_steps=1)" not in recommendation(run)
    mixed = record(*CERTIFIED, because(12, 13, OpenCause.TOO_MANY), because(13, 20, OpenCause.NOT_MEASURED))
    assert "Distortion(every_n_steps=1)" in recommendation(mixed)


def because(begins: int, ends: int, cause: OpenCause) -> Measurement:
    one = line(begins, ends, StepState.OPEN)
    return replace(one, values={**one.values, "cause": float(cause)})


@pytest.mark.parametrize("cause", OpenCause)
def test_every_cause_has_words_and_comes_back_from_the_files(cause: OpenCause, tmp_path: Path) -> None:
    writer = RecordWriter.open(tmp_path)
    writer.measurement(because(0, 9, cause))
    writer.close()
    written = read_record(tmp_path)
    assert [m.values["cause"] for m in written.measurements] == [cause]
    assert cause.word in (tmp_path / "measurements.jsonl").read_text()
    assert "the first is step 1 (" in verdict(written)


def test_of_neurons_that_are_all_equal_it_is_said_that_they_stay_so() -> None:
    still = {"critical_ratio": 0.0, "distinct_neurons": 1.0, "n_neurons": 8.0}
    one = [Measurement(1, 0, "distortion", group, still) for group in ("net.0", "net.2", "net.4")]
    advice = recommendation(record(*one, line(0, 9, BOUNDED, 0.0)))
    assert advice == "Initialize the neurons at random: they are equal."
    apart = replace(one[0], values={**still, "distinct_neurons": 7.0})
    assert "none of them moved against another" in recommendation(record(apart, line(0, 9, BOUNDED, 0.0)))


@pytest.mark.parametrize("measured", [(), (ratio(0, 0.0),), (ratio(0, 0.0), ratio(1, 0.0), line(0, 1, EXACT))])
def test_of_neurons_that_never_moved_it_is_said_that_r_was_zero(measured: tuple[Measurement, ...]) -> None:
    found = record(*measured, line(1 if len(measured) > 1 else 0, 9, BOUNDED, 0.0))
    assert "r was 0, no watched neuron moved against another" in verdict(found)
    assert (
        recommendation(found)
        == "As far as the watched neurons go, there is nothing to change: none of them moved against another."
    )


def test_the_gravest_comes_first() -> None:
    broken = (*OPENED, ratio(9, 2.0), line(8, 9, EXACT))
    said = verdict(record(*broken))
    assert said.startswith(
        "a broke down at step 9; the largest r was 2, at step 9 in a; 17 of 20 steps measured or bounded"
    )
    both = verdict(record(*broken, NAN_LOSS))
    assert both.startswith("Training diverged: the loss is not finite at step 7; neurons may have merged or torn at")
    assert tone(history(record(*CERTIFIED, NAN_LOSS)).outcome) is Phase.BREAKDOWN
    edge = [Measurement(k, 0, "sharpness", "", {"sharpness_ratio": 1.0}) for k in range(1, 9)]
    assert verdict(record(*CERTIFIED, *edge)).startswith("Reached the edge of stability at step 1;")
    assert verdict(record(*OPENED, *edge)).startswith("Nothing is known of 3 of 20 steps")


def test_nothing_is_called_preserved_where_steps_are_open() -> None:
    for run in (record(*OPENED), record(*SPANS), record(*OPENED, NAN_LOSS)):
        assert "preserved" not in verdict(run)
        ribbon = run_view(run, "run", Budget.of(2)).ribbon
        assert ribbon is not None
        for code, begin, end in zip(ribbon.codes[0], ribbon.steps, (*ribbon.steps[1:], 99), strict=True):
            assert code != Phase.PRESERVED or end <= 13 or begin >= 16


def test_a_note_is_no_event_of_the_headline() -> None:
    run = record(*CERTIFIED, events=(NOTE,))
    assert verdict(run).endswith("\u2013 no events, 1 note")
    assert "unwatched" in render_page([run])


def test_the_summary_has_one_line_of_coverage() -> None:
    lines = summary(record(*OPENED)).splitlines()
    assert lines[1] == "  coverage  17 of 20 steps certified: 2 exact, 15 by bound; 3 open"
    assert sum("certified:" in text for text in lines) == 1
    assert lines[2] == "  phases    preserved 0-12, unknown 13-15, preserved 16-20"


def test_what_was_not_measured_is_not_said_to_have_happened_never() -> None:
    def found(*measurements: Measurement) -> dict[str, str]:
        return {fact.name: fact.value for fact in facts(run_view(record(*measurements), "run", Budget.of(2)))}

    names = ("First breakdown", "Edge of stability reached", "Curvature bound passed")
    bare = found(Measurement(3, 0, "training", "", {"loss": 1.0}))
    assert [bare[name] for name in names] == ["not measured"] * 3
    ratios = found(*CERTIFIED)
    assert [ratios[name] for name in names] == ["never", "not measured", "not measured"]
    curved = found(*CERTIFIED, Measurement(4, 0, "sharpness", "", {"eta_lambda": 0.1, "sharpness_ratio": 0.2}))
    assert [curved[name] for name in names] == ["never"] * 3


def test_a_record_without_coverage_lines_reads_as_before() -> None:
    run = record(ratio(0, 0.0), ratio(800, 0.0187))
    assert (
        verdict(run)
        == "Topology preserved over 800 steps: r stayed below 0.019 at the 2 measured steps \u2013 no events"
    )
    assert run_view(run, "run", Budget.of(1)).certificates is None


def test_every_step_has_a_cell_while_there_is_room() -> None:
    table = run_view(record(*OPENED), "run", Budget.of(2)).certificates
    assert table is not None
    assert (table.steps, table.last) == ((1, 2, 3, 6, 7, 13, 16), 20)
    assert table.states == ((3, 3, 2, 2, 2, 0, 2), (3, 3, 2, 3, 2, 2, 2))
    assert table.values == ((0.1, 0.1, 0.31, 0.31, 0.31, None, 0.1), (0.1, 0.1, 0.2, 0.15, 0.05, 0.4, 0.4))


def test_cells_of_many_steps_hide_no_open_step_and_no_breakdown() -> None:
    view = run_view(record(*OPENED), "run", replace(Budget.of(2), ratio_columns=2)).certificates
    assert view is not None
    assert (view.steps, view.states) == ((1, 9), ((2, 0), (2, 2)))
    broken = run_view(record(*OPENED, ratio(14, 3.0)), "run", replace(Budget.of(2), ratio_columns=1)).certificates
    assert broken is not None
    assert (broken.states[0], broken.values[0]) == ((3,), (3.0,))


def test_groups_that_take_turns_leave_cells_without_a_record() -> None:
    turns = [line(k - 1, k, EXACT, group="ab"[k % 2]) for k in range(1, 5)]
    ratios = [ratio(k, 0.1, "ab"[k % 2]) for k in range(1, 5)]
    table = run_view(record(*turns, *ratios), "run", Budget.of(2)).certificates
    assert table is not None
    assert set(table.states) == {(3, None, 3, None), (None, 3, None, 3)}
    assert certificate_table({}, {}, ("a",), 10) is None


def held(step: int, r: float, proposed: float) -> Measurement:
    return Measurement(step, 0, "distortion", "a", {"critical_ratio": r, "proposed_critical_ratio": proposed})


RATE = Measurement(1, 0, "training", "", {"learning_rate": 3.0})


def test_what_a_guard_has_held_back_is_said_and_judged_by_what_it_would_have_been() -> None:
    run = record(RATE, ratio(1, 0.2), held(2, 0.5, 30.0), held(3, 0.5, 6.0), line(0, 9, BOUNDED, 0.6))
    assert "a guard held back updates of 2 measured steps" in verdict(run)
    assert recommendation(run) == "Keep the guard, or lower the learning rate from 3 to 0.08."
    assert "a guard" not in verdict(record(ratio(1, 0.2), line(0, 9, BOUNDED, 0.6)))
    assert rate_limits(run.measurements).critical == ((1, 3.0 / 0.2), (2, 0.1), (3, 0.5))
    unbounded = record(RATE, held(2, 0.5, math.inf), line(0, 9, BOUNDED, 0.6))
    assert recommendation(unbounded) == "Keep the guard, or lower the learning rate."


@pytest.mark.parametrize(("events", "why"), [({"topology_breakdown": 1.0}, "topology_breakdown"), ({}, "no news")])
def test_where_a_gate_has_stopped_the_training_the_verdict_says_so(events: dict[str, float], why: str) -> None:
    gate = Measurement(9, 0, "gate", "", {"stopped": 1.0, "quiet_captures": 3.0, "instability": 0.0, **events})
    assert f"a gate stopped the training at step 9 ({why}" in verdict(record(ratio(1, 0.2), gate))
