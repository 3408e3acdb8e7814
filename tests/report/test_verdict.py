import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.record import RunRecord
from lightning_topo.report import verdict
from lightning_topo.report.outcome import history
from lightning_topo.report.verdict import above


def run(*measurements: Measurement) -> RunRecord:
    return RunRecord(Path("run"), "id", measurements)


def ratio(step: int, value: float, group: str = "net.0") -> Measurement:
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def sharpness(step: int, **values: float) -> Measurement:
    return Measurement(step, 0, "sharpness", "", values)


def test_a_breakdown_comes_first_with_its_group_step_and_ratio(breakdown: RunRecord) -> None:
    assert verdict(breakdown) == "net.0: topology_breakdown at step 300 (r = 1.31) \u2013 13 events"


def test_more_broken_groups_are_counted() -> None:
    record = run(ratio(1, 1.5, "b"), ratio(2, 2.0, "a"), ratio(3, 9.0, "c"))
    assert verdict(record) == "b: topology_breakdown at step 1 (r = 1.5), and later in 2 more groups \u2013 3 events"


def test_the_edge_comes_with_a_bound_on_r(demo: RunRecord) -> None:
    peak = max(m.values["critical_ratio"] for m in demo.measurements if m.probe == "distortion")
    step = next(e.step for e in history(demo).events if e.name == "edge_of_stability_enter")
    assert 225 <= step <= 300
    assert (
        verdict(demo) == f"Entered the edge of stability at step {step}; r stayed below {above(peak)} \u2013 31 events"
    )


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        ((), "Nothing was measured yet \u2013 no events"),
        ((ratio(0, 0.0),), "Nothing trained yet: only the initial network was measured \u2013 no events"),
        (
            (ratio(1, 0.0187), ratio(2, 0.01), sharpness(0, sharpness_ratio=0.1)),
            "Topology preserved over 2 steps: r stayed below 0.019 \u2013 no events",
        ),
        (
            (ratio(0, 0.0), ratio(800, 0.0187)),
            "Topology preserved over 800 steps: r stayed below 0.019 at the 2 measured steps \u2013 no events",
        ),
        (
            (ratio(0, 0.0), ratio(1, 0.0)),
            "Topology preserved over 1 step: r was 0, no neuron moved against another \u2013 no events",
        ),
        (
            tuple(sharpness(k, eta_lambda=1.2) for k in range(4)),
            "Passed the curvature bound at step 2; the critical ratio r was not measured \u2013 1 event",
        ),
        (
            tuple(sharpness(k, sharpness_ratio=0.3) for k in range(4)),
            "Below the edge of stability over 3 steps; the critical ratio r was not measured \u2013 no events",
        ),
        (
            (Measurement(5, 0, "training", "", {"loss": 1.0}),),
            "No phase could be told over 5 steps: the critical ratio r was not measured \u2013 no events",
        ),
        (
            (ratio(0, 0.1), ratio(2, math.nan), Measurement(2, 0, "training", "", {"loss": math.nan})),
            "Topology preserved over 2 steps: r stayed below 0.11 at the 1 measured step; "
            "the loss is not finite at step 2 \u2013 1 event",
        ),
    ],
)
def test_what_is_said_of_each_kind_of_run(measurements: tuple[Measurement, ...], expected: str) -> None:
    assert verdict(run(*measurements)) == expected


def test_recorded_events_of_the_replayed_kinds_are_not_counted_twice(demo: RunRecord, hostile: RunRecord) -> None:
    doubled = replace(demo, events=history(demo).events)
    assert verdict(doubled) == verdict(demo)
    assert {"gap", "probe_failed"} <= {event.name.value for event in history(hostile).events}


@given(st.floats(1e-9, 1e9))
def test_above_is_above_and_close(value: float) -> None:
    assert value < float(above(value)) <= value * 1.12
