"""Runs of which not every step was measured exactly, as records in memory."""

from pathlib import Path

from lightning_topo.measurement import Measurement, StepState
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import TopologyEvent
from tests.figures.test_coverage import line

OPEN, SPANNED, BOUNDED, EXACT = (float(state) for state in StepState)


def ratio(step: int, value: float, group: str = "a") -> Measurement:
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def record(*measurements: Measurement, events: tuple[TopologyEvent, ...] = ()) -> RunRecord:
    return RunRecord(Path("run"), "id", tuple(sorted(measurements, key=lambda m: m.step)), events)


CERTIFIED = (
    ratio(0, 0.0),
    *(ratio(step, 0.1, group) for step in (1, 2) for group in ("a", "b")),
    line(0, 2, EXACT), line(0, 2, EXACT, group="b"),
    line(2, 12, BOUNDED, 0.31), line(2, 5, BOUNDED, 0.2, "b"),
    ratio(6, 0.15, "b"), line(5, 6, EXACT, group="b"), line(6, 12, BOUNDED, 0.05, "b"),
)  # fmt: skip
OPENED = (*CERTIFIED, line(12, 15, OPEN), line(12, 20, BOUNDED, 0.4, "b"), line(15, 20, BOUNDED, 0.1))


SPANS = (*CERTIFIED, line(12, 15, SPANNED), line(12, 15, BOUNDED, 0.1, "b"))
