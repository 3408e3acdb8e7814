"""Persistent homology of a cloud of neurons: diagrams, their summaries and the distances between them."""

from lightning_topo.homology.diagram import Bars, PersistenceDiagram
from lightning_topo.homology.engines import available_engines
from lightning_topo.homology.h0 import h0_deaths
from lightning_topo.homology.matching import log_bottleneck
from lightning_topo.homology.rips import persistence
from lightning_topo.homology.summaries import (
    betti_number,
    max_persistence,
    persistence_entropy,
    total_persistence,
)

__all__ = [
    "Bars",
    "PersistenceDiagram",
    "available_engines",
    "betti_number",
    "h0_deaths",
    "log_bottleneck",
    "max_persistence",
    "persistence",
    "persistence_entropy",
    "total_persistence",
]
