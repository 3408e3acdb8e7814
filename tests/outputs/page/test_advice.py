"""Which advice a run gets: that for the worst that has happened."""

import math
from pathlib import Path

import pytest

from lightning_topo.measurement import Measurement, OpenCause
from lightning_topo.outputs.page._advice import recommendation
from lightning_topo.outputs.page._next_rate import FAILED, floor2
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.advised import advice_on, edge, loss, rate, ratio


def test_what_broke_and_learned_nothing_is_not_asked_to_warm_up() -> None:
    ratios = [ratio(2, 2.0), *(ratio(k, 0.01) for k in range(10, 200, 10))]
    losses = [loss(k, 2.3) for k in range(1, 200)]
    assert advice_on(rate(1, 0.5), *ratios, *losses).learning_rate == floor2(0.5 * FAILED)
    fallen = [loss(k, 2.3 / k) for k in range(1, 200)]
    assert advice_on(rate(1, 0.5), *ratios, *fallen).warmup_steps is not None


@pytest.mark.parametrize(
    ("cause", "decision"),
    [
        (OpenCause.NOT_MEASURED, "Keep the learning rate 0.3, and measure every step"),
        (None, "Keep the learning rate 0.3, and measure every step"),
        (OpenCause.MOVED, "As far as r goes, keep the learning rate 0.3"),
        (OpenCause.UNKNOWN_NEURONS, "As far as r goes, keep the learning rate 0.3"),
        (OpenCause.NOT_FINITE, "Lower the learning rate from 0.3 to"),
    ],
)
def test_more_measurements_are_asked_for_only_where_they_would_help(cause: OpenCause | None, decision: str) -> None:
    values = {"from": 4.0, "state": 0.0} | ({} if cause is None else {"cause": float(cause)})
    covered = Measurement(5, 0, "coverage", "net.0", values)
    losses = (loss(k, 2.0 / k) for k in range(1, 41))
    said = advice_on(rate(1, 0.3), ratio(1, 0.2), covered, *losses)
    assert said.decision.startswith(decision)


def test_a_run_without_a_step_gets_no_advice() -> None:
    assert recommendation(RunRecord(Path("run"), "id", ())) == ""


def test_the_worst_decides() -> None:
    """Each run is the one before with something worse in it."""
    cause = float(OpenCause.NOT_MEASURED)
    opened = Measurement(150, 0, "coverage", "net.0", {"from": 140.0, "state": 0.0, "cause": cause})
    measured = [rate(1, 0.1), ratio(3, 0.1), *(loss(k, 2.0 / k) for k in range(1, 160)), edge(20, 0.5)]
    decisions = []
    for worse in ([], [edge(k, 1.2) for k in range(100, 200, 10)], [opened], [ratio(151, 2.0)], [loss(160, math.nan)]):
        measured += worse
        decisions.append(advice_on(*measured).decision)
    assert decisions == [
        "As far as stability goes, keep the learning rate 0.1: no limit was met.",
        "Keep the learning rate 0.1: it is as large as this network bears.",
        "Keep the learning rate 0.1, and measure every step: probes=[Distortion(every_n_steps=1), ...].",
        "Lower the learning rate from 0.1 to 0.04.",
        "Lower the learning rate from 0.1 to 0.02.",
    ]
