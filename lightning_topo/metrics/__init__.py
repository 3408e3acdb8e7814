"""The topology of neurons as torchmetrics classes; `functional` holds the functions under them."""

from lightning_topo.metrics import functional
from lightning_topo.metrics._distortion import CriticalRatio, LipschitzDistortion
from lightning_topo.metrics._persistence import (
    BettiNumbers,
    DiagramDistance,
    PersistenceEntropy,
    TotalPersistence,
)

__all__ = [
    "BettiNumbers",
    "CriticalRatio",
    "DiagramDistance",
    "LipschitzDistortion",
    "PersistenceEntropy",
    "TotalPersistence",
    "functional",
]
