"""Persistent homology of a cloud of neurons: diagrams, their summaries and the distances between them."""

from lightning_topo.homology._diagram import Bars, PersistenceDiagram
from lightning_topo.homology._engines import available_engines
from lightning_topo.homology._h0 import h0_deaths
from lightning_topo.homology._matching import bottleneck, log_bottleneck, log_bottleneck_bound, wasserstein
from lightning_topo.homology._rips import RipsTask, persistence, rips_task
from lightning_topo.homology._summaries import (
    betti_number,
    max_persistence,
    persistence_entropy,
    total_persistence,
)
from lightning_topo.homology._vectors import betti_curve, crocker, landscape, persistence_image
from lightning_topo.homology._worker import JobLost, Worker, WorkerBroken

__all__ = [
    "Bars",
    "JobLost",
    "PersistenceDiagram",
    "RipsTask",
    "Worker",
    "WorkerBroken",
    "available_engines",
    "betti_curve",
    "betti_number",
    "bottleneck",
    "crocker",
    "h0_deaths",
    "landscape",
    "log_bottleneck",
    "log_bottleneck_bound",
    "max_persistence",
    "persistence",
    "persistence_entropy",
    "persistence_image",
    "rips_task",
    "total_persistence",
    "wasserstein",
]
