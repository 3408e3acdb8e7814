"""The advice on a run of a few measurements."""

from pathlib import Path

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._advice import advise
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._next_rate import Advice
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import RunRecord


def rate(step: int, value: float) -> Measurement:
    return Measurement(step, 0, "training", "", {"learning_rate": value})


def ratio(step: int, value: float, group: str = "net.0") -> Measurement:
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def edge(step: int, value: float) -> Measurement:
    return Measurement(step, 0, "sharpness", "", {"sharpness_ratio": value})


def loss(step: int, value: float) -> Measurement:
    return Measurement(step, 0, "training", "", {"loss": value})


def advice_on(*measurements: Measurement) -> Advice:
    record = RunRecord(Path("run"), "id", measurements)
    found = advise(history(record).outcome, Evidence.of(record.measurements))
    assert found is not None
    return found
