"""Every metric of the package beside the function that computes it, and clouds to measure."""

from collections.abc import Callable

import torch
from torchmetrics import Metric

from lightning_topo.homology import available_engines
from lightning_topo.metrics import (
    BettiNumbers,
    CriticalRatio,
    DiagramDistance,
    LipschitzDistortion,
    PersistenceEntropy,
    TotalPersistence,
    functional,
)

MAX_DIM = 1 if available_engines() else 0


def cloud(seed: int, n: int = 14) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


STEP_METRICS: list[tuple[Callable[[], Metric], Callable[..., torch.Tensor]]] = [
    (CriticalRatio, functional.critical_ratio),
    (LipschitzDistortion, functional.lipschitz_distortion),
    (lambda: DiagramDistance(MAX_DIM), lambda a, b: functional.diagram_distance(a, b, MAX_DIM)),
    (
        lambda: DiagramDistance(MAX_DIM, "log_bottleneck"),
        lambda a, b: functional.diagram_distance(a, b, MAX_DIM, "log_bottleneck"),
    ),
]
CLOUD_METRICS: list[tuple[Callable[[], Metric], Callable[..., torch.Tensor]]] = [
    (lambda: BettiNumbers(MAX_DIM), lambda x: functional.betti_numbers(x, MAX_DIM)),
    (lambda: TotalPersistence(MAX_DIM, 2.0), lambda x: functional.total_persistence(x, MAX_DIM, 2.0)),
    (lambda: PersistenceEntropy(MAX_DIM), lambda x: functional.persistence_entropy(x, MAX_DIM)),
]
EVERY = [(make, twin, 2) for make, twin in STEP_METRICS] + [(make, twin, 1) for make, twin in CLOUD_METRICS]
