"""The callbacks, and a logger that Lightning lacks: the only place, beside the demo, that knows Lightning."""

from lightning_topo.callbacks._early_stopping import TopologyEarlyStopping
from lightning_topo.callbacks._lr_finder import TopologyLRFinder
from lightning_topo.callbacks._lr_sweep import LRSweep
from lightning_topo.callbacks._monitor import TopologyMonitor
from lightning_topo.callbacks._step_guard import TopologyStepGuard
from lightning_topo.callbacks._trackio_logger import TrackioLogger
from lightning_topo.outputs._feed import Findings

__all__ = [
    "Findings",
    "LRSweep",
    "TopologyEarlyStopping",
    "TopologyLRFinder",
    "TopologyMonitor",
    "TopologyStepGuard",
    "TrackioLogger",
]
