"""Detect phases and events from measurements: a pure state machine that needs no Trainer and no torch."""

from lightning_topo.phases._detector import Replay, observe, replay
from lightning_topo.phases._edge import EdgeSource
from lightning_topo.phases._event import DETECTED, NOTES, EventName, Severity, TopologyEvent
from lightning_topo.phases._event_list import EventList
from lightning_topo.phases._following import PhaseFollower, collapsed, width_for
from lightning_topo.phases._phase import Phase
from lightning_topo.phases._record_replay import RecordReplayer, replay_events, replay_record
from lightning_topo.phases._rules import Band, PhaseRules
from lightning_topo.phases._state import DetectorState

__all__ = [
    "DETECTED",
    "NOTES",
    "Band",
    "DetectorState",
    "EdgeSource",
    "EventList",
    "EventName",
    "Phase",
    "PhaseFollower",
    "PhaseRules",
    "RecordReplayer",
    "Replay",
    "Severity",
    "TopologyEvent",
    "collapsed",
    "observe",
    "replay",
    "replay_events",
    "replay_record",
    "width_for",
]
