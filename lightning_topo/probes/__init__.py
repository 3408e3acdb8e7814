"""Probes measure a network on a schedule. A probe never sees the Trainer."""

from lightning_topo.probes._batch_loss import BatchLoss
from lightning_topo.probes._critical_sharpness import StepSharpness
from lightning_topo.probes._distortion import Distortion
from lightning_topo.probes._fate import Fate
from lightning_topo.probes._period import Period
from lightning_topo.probes._persistence import Persistence
from lightning_topo.probes._probe import (
    Capture,
    Clouds,
    Pending,
    Probe,
    ProbeResult,
    ProbeUnavailable,
    ResultLost,
)
from lightning_topo.probes._sharpness import Sharpness
from lightning_topo.probes._step_edge import StepEdge

__all__ = [
    "BatchLoss",
    "Capture",
    "Clouds",
    "Distortion",
    "Fate",
    "Pending",
    "Period",
    "Persistence",
    "Probe",
    "ProbeResult",
    "ProbeUnavailable",
    "ResultLost",
    "Sharpness",
    "StepEdge",
    "StepSharpness",
]
