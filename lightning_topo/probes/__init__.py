"""Probes measure a network on a schedule. A probe never sees the Trainer."""

from lightning_topo.probes.batch_loss import BatchLoss
from lightning_topo.probes.critical_sharpness import StepSharpness
from lightning_topo.probes.distortion import Distortion
from lightning_topo.probes.fate import Fate
from lightning_topo.probes.period import Period
from lightning_topo.probes.persistence import Persistence
from lightning_topo.probes.probe import (
    Capture,
    Clouds,
    Pending,
    Probe,
    ProbeResult,
    ProbeUnavailable,
    ResultLost,
)
from lightning_topo.probes.sharpness import Sharpness
from lightning_topo.probes.step_edge import StepEdge

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
