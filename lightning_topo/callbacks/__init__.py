"""The callbacks: the only place, beside the demo, that knows Lightning."""

from lightning_topo.callbacks.early_stopping import TopologyEarlyStopping
from lightning_topo.callbacks.monitor import TopologyMonitor

__all__ = ["TopologyEarlyStopping", "TopologyMonitor"]
