"""The callbacks: the only place, beside the demo, that knows Lightning."""

from lightning_topo.callbacks.early_stopping import TopologyEarlyStopping
from lightning_topo.callbacks.lr_finder import TopologyLRFinder
from lightning_topo.callbacks.lr_sweep import LRSweep
from lightning_topo.callbacks.monitor import TopologyMonitor
from lightning_topo.callbacks.step_guard import TopologyStepGuard
from lightning_topo.outputs.feed import Findings

__all__ = ["Findings", "LRSweep", "TopologyEarlyStopping", "TopologyLRFinder", "TopologyMonitor", "TopologyStepGuard"]
