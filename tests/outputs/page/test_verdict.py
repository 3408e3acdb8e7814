import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page import verdict
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.page._verdict import above, tone
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import Phase


def run(*measurements: Measurement) -> RunRecord:
    return RunRecord(Path("run"), "id", measurements)


def ratio(step: int, value: float, group: str = "net.0") -> Measurement:
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def sharpness(step: int, **values: float) -> Measurement:
    return Measurement(step, 0, "sharpness", "", values)


def series(record: RunRecord, name: str) -> dict[str, list[float]]:
    """By group, in the order of steps."""
    found: dict[str, list[float]] = {}
    for m in record.measurements:
        if name in m.values:
            found.setdefault(m.group, []).append(m.values[name])
    return found


def n_events(record: RunRecord) -> int:
    """How many events the rules of docs/events.md make of a synthetic run, counted from its measurements."""
    spans = [n_spans(ratios) for ratios in series(record, "critical_ratio").values()]
    levels = [n_levels(counts) for k in (0, 1) for counts in series(record, f"betti_{k}").values()]
    whole = series(record, "eta_lambda")[""], series(record, "sharpness_ratio")[""]
    return sum(spans) + sum(levels) + n_crossings(whole[0], 1.0, 0.8) + n_crossings(whole[1], 0.95, 0.7)


def n_spans(ratios: Sequence[float]) -> int:
    """A beginning where r >= 1, and an end after a hundred steps below."""
    spans = re.findall("1(?:0{,99}1)*(0{100})?", "".join("1" if r >= 1.0 else "0" for r in ratios))
    return sum(2 if end else 1 for end in spans)


def n_levels(counts: Sequence[float]) -> int:
    """A Betti number has changed where two captures in a row lie on the same side of it, a twentieth away."""
    told, n = 0, 0
    for k, pair in enumerate(pairwise(counts)):
        one, other = (count - counts[told] for count in pair)
        if k > told and one * other > 0.0 and min(abs(one), abs(other)) >= max(1.0, counts[told] / 20):
            told, n = k + 1, n + 1
    return n


def n_crossings(values: Sequence[float], enter: float, leave: float) -> int:
    """In where the median of 3 is at least the one threshold, out where that of 5 is below the other."""
    inside, n = False, 0
    for k in range(5, len(values) + 1):
        turned = median(values[k - 5 : k]) < leave if inside else median(values[k - 3 : k]) >= enter
        inside, n = inside ^ turned, n + turned
    return n


def test_a_breakdown_comes_first_with_its_group_step_and_ratio(breakdown: RunRecord) -> None:
    peak = max((m.values["critical_ratio"], -m.step) for m in breakdown.measurements if m.probe == "distortion")
    most = f"the largest r was {peak[0]:.3g}, at step {-peak[1]} in net.0"
    said = f"net.0 broke down at step 300; {most} \u2013 {n_events(breakdown)} events"
    assert verdict(breakdown) == said


def test_more_broken_groups_are_counted() -> None:
    record = run(ratio(1, 1.5, "b"), ratio(2, 2.0, "a"), ratio(3, 9.0, "c"))
    said = "3 of 3 groups broke down, first b at step 1; the largest r was 9, at step 3 in c \u2013 3 events"
    assert verdict(record) == said


def test_the_edge_comes_with_a_bound_on_r(demo: RunRecord) -> None:
    peak = max(m.values["critical_ratio"] for m in demo.measurements if m.probe == "distortion")
    step = next(e.step for e in history(demo).events if e.name == "edge_of_stability_enter")
    assert 225 <= step <= 300
    points = [(m.step, m.values["sharpness_ratio"]) for m in demo.measurements if "sharpness_ratio" in m.values]
    crossed = min(s for s, value in points if value >= 0.95)
    before = max(s for s, _ in points if s < crossed)
    assert crossed <= step
    entered = f"Reached the edge of stability between steps {before} and {crossed}; r stayed below {above(peak)}"
    assert verdict(demo) == f"{entered} \u2013 {n_events(demo)} events"


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
            "Topology preserved over 1 step: r was 0, no watched neuron moved against another \u2013 no events",
        ),
        (
            tuple(sharpness(k, eta_lambda=1.2) for k in range(4)),
            "Passed the curvature bound at step 0; the critical ratio r was not measured \u2013 1 event",
        ),
        (
            tuple(sharpness(k, sharpness_ratio=0.3) for k in range(4)),
            "Below the edge of stability over 3 steps; the critical ratio r was not measured \u2013 no events",
        ),
        (
            (Measurement(5, 0, "training", "", {"loss": 1.0}),),
            "No phase is known over 5 steps: the critical ratio r was not measured \u2013 no events",
        ),
        (
            (ratio(0, 0.1), ratio(2, math.nan), Measurement(2, 0, "training", "", {"loss": math.nan})),
            "Training diverged: the loss is not finite at step 2; "
            "the largest r was 0.1, at step 0 in net.0 \u2013 1 event",
        ),
    ],
)
def test_what_is_said_of_each_kind_of_run(measurements: tuple[Measurement, ...], expected: str) -> None:
    assert verdict(run(*measurements)) == expected


def test_a_loss_that_fell_and_came_back_comes_before_what_was_preserved() -> None:
    losses = [Measurement(k, 0, "training", "", {"loss": 0.5 if 10 < k < 60 else 2.3}) for k in range(1, 101)]
    lost = run(*losses, ratio(1, 0.1))
    assert verdict(lost).startswith("The loss fell to 0.5 by step 30 and is back at 2.3. Topology preserved")
    assert tone(history(lost).outcome) is Phase.UNKNOWN  # not the colour of what is well
    kept = run(*losses[:59], ratio(1, 0.1))
    assert verdict(kept).startswith("Topology preserved")
    assert tone(history(kept).outcome) is Phase.PRESERVED


def test_what_diverged_is_never_called_preserved() -> None:
    losses = [Measurement(step, 0, "training", "", {"loss": loss}) for step, loss in ((1, 1.0), (2, math.inf))]
    record = run(*losses, ratio(1, 0.1), Measurement(2, 0, "coverage", "net.0", {"from": 0.0, "state": 3.0}))
    assert verdict(record).startswith("Training diverged: the loss is not finite at step 2")
    assert tone(history(record).outcome) is Phase.BREAKDOWN
    unstable = run(*losses, Measurement(3, 0, "training", "", {"loss": 0.9}), ratio(3, 0.1))
    assert verdict(unstable).startswith("Training became unstable: the loss was not finite at step 2")


@given(st.floats(1e-9, 1e9))
def test_above_is_above_and_close(value: float) -> None:
    assert value < float(above(value)) <= value * 1.12
