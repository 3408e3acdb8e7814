"""One training watched, whatever runs its loop."""

from lightning_topo._watch.output import Output, Run, RunOutputs
from lightning_topo._watch.settings import WatchSettings
from lightning_topo._watch.training import Training
from lightning_topo._watch.watch import Watch

__all__ = ["Output", "Run", "RunOutputs", "Training", "Watch", "WatchSettings"]
