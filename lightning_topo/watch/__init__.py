"""One training watched, whatever runs its loop."""

from lightning_topo.watch.output import Output, Run, RunOutputs
from lightning_topo.watch.settings import WatchSettings
from lightning_topo.watch.training import Training
from lightning_topo.watch.watch import Watch

__all__ = ["Output", "Run", "RunOutputs", "Training", "Watch", "WatchSettings"]
