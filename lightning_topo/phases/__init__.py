"""Measurements in; phases and typed events out. A pure state machine: no Trainer, no torch."""

from lightning_topo.phases.detector import Replay, observe, replay
from lightning_topo.phases.edge import EdgeSource
from lightning_topo.phases.event import DETECTED, EventName, Severity, TopologyEvent
from lightning_topo.phases.event_list import EventList
from lightning_topo.phases.following import PhaseFollower, collapsed, width_for
from lightning_topo.phases.phase import Phase
from lightning_topo.phases.retelling import Teller, retell, told
from lightning_topo.phases.rules import Band, PhaseRules
from lightning_topo.phases.state import DetectorState

__all__ = [
    "DETECTED",
    "Band",
    "DetectorState",
    "EdgeSource",
    "EventList",
    "EventName",
    "Phase",
    "PhaseFollower",
    "PhaseRules",
    "Replay",
    "Severity",
    "Teller",
    "TopologyEvent",
    "collapsed",
    "observe",
    "replay",
    "retell",
    "told",
    "width_for",
]
