"""Where measurements and events go: the record, the page, trackers, the terminal, other callbacks."""

from lightning_topo.outputs.feed import Findings
from lightning_topo.outputs.outputs import Outputs, open_outputs
from lightning_topo.outputs.terminal import Printer

__all__ = ["Findings", "Outputs", "Printer", "open_outputs"]
