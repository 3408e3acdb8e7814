"""Measurements, events and captures of a few steps, as a monitor writes them."""

import torch

from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement
from lightning_topo.phases import DetectorState, observe


def ratio(step, value=0.1, group="net.0"):
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def loss(step, value=1.0):
    return Measurement(step, 0, "training", "", {"loss": value})


DIAGRAM = {"net.0": persistence(torch.eye(4), 1)}


def write(writer, steps, value=0.1):
    """Measurements of these steps, the events that the detector makes of them, and a capture every fifth."""
    state = DetectorState()
    for step in steps:
        for measurement in (loss(step), ratio(step, value)):
            writer.measurement(measurement)
            state, events = observe(state, measurement)
            for event in events:
                writer.event(event)
        if step % 5 == 0:
            writer.diagrams(step, DIAGRAM)
