"""The destinations of measurements and events: record, page, trackers, terminal, other callbacks."""

from lightning_topo.outputs._feed import Findings
from lightning_topo.outputs._gates import StopRules

__all__ = ["Findings", "StopRules"]
