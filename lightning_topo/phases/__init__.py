"""Measurements in; phases and typed events out. A pure state machine: no Trainer, no torch."""

from lightning_topo.phases.detector import DetectorState, Replay, observe, replay
from lightning_topo.phases.event import DETECTED, EventName, Severity, TopologyEvent
from lightning_topo.phases.phase import Phase
from lightning_topo.phases.retelling import retell, told
from lightning_topo.phases.rules import Band, PhaseRules

__all__ = [
    "DETECTED",
    "Band",
    "DetectorState",
    "EventName",
    "Phase",
    "PhaseRules",
    "Replay",
    "Severity",
    "TopologyEvent",
    "observe",
    "replay",
    "retell",
    "told",
]
