"""The destinations of measurements and events: record, page, trackers, terminal, other callbacks."""

from lightning_topo.outputs.feed import Findings
from lightning_topo.outputs.outputs import Outputs, open_outputs
from lightning_topo.outputs.terminal import Printer

__all__ = ["Findings", "Outputs", "Printer", "open_outputs"]
