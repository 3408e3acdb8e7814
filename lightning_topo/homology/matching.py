"""Distances between persistence diagrams."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from lightning_topo.homology.diagram import Bars, PersistenceDiagram


def log_bottleneck(a: PersistenceDiagram, b: PersistenceDiagram, k: int) -> float:
    """Bottleneck distance of two diagrams in the coordinates (log birth, log death); for H0, of log death.

    It is the distance that the distortion of a step bounds: if the clouds are matched with distance ratios
    in [c, e], it is at most max(log e, -log c). For H0 it is max |log a_(i) - log b_(i)| over the sorted
    deaths, and infinite where the diagrams differ in their number of bars, or of bars of zero length.

    Raises:
        ValueError: a bar of dimension k >= 1 never dies, which a full Rips filtration cannot hold.

    >>> from lightning_topo.homology import persistence
    >>> cloud = torch.tensor([[0.0], [1.0], [5.0]])
    >>> round(log_bottleneck(persistence(cloud, 0), persistence(2 * cloud, 0), 0), 6)  # log 2
    0.693147
    """
    if k == 0:
        return _log_bottleneck_h0(a[0], b[0])
    if a[k].n_essential or b[k].n_essential:
        raise ValueError(f"expected every bar to die in dimension {k} >= 1 of a Rips filtration")
    return _bottleneck(_log_points(a[k]), _log_points(b[k]))


def _log_bottleneck_h0(a: Bars, b: Bars) -> float:
    """All births are 0, at log-distance infinity from the diagonal: so every bar is matched, in order."""
    if len(a) != len(b):
        return math.inf
    x, y = a.deaths.double().sort().values, b.deaths.double().to(a.deaths.device).sort().values
    different = x != y
    if not different.any():
        return 0.0
    return float((x[different].log() - y[different].log()).abs().max())


def _log_points(bars: Bars) -> Float[np.ndarray, "k 2"]:
    """The finite bars of positive length in logarithmic coordinates."""
    bars = bars.finite()
    points = torch.stack([bars.births, bars.deaths], dim=1).double().cpu().numpy()
    return np.log(points[points[:, 1] > points[:, 0]])


def _bottleneck(a: Float[np.ndarray, "k 2"], b: Float[np.ndarray, "m 2"]) -> float:
    """Exact bottleneck distance of finite intervals: the least feasible one of the costs that occur."""
    between = np.abs(a[:, None] - b[None]).max(axis=2, initial=0.0)
    to_diagonal = [(points[:, 1] - points[:, 0]) / 2 for points in (a, b)]
    costs = np.unique(np.concatenate([between.ravel(), *to_diagonal, [0.0]]))
    low, high = 0, len(costs) - 1
    while low < high:
        middle = (low + high) // 2
        if _matchable(between, to_diagonal[0], costs[middle]) and _matchable(
            between.T, to_diagonal[1], costs[middle]
        ):
            high = middle
        else:
            low = middle + 1
    return float(costs[low])


def _matchable(between: Float[np.ndarray, "k m"], to_diagonal: Float[np.ndarray, " k"], cost: float) -> bool:
    """Whether all rows that the diagonal cannot take at this cost have partners among the columns.

    Where that holds for rows and for columns, one matching covers both (Mendelsohn and Dulmage, 1958).
    """
    bound = between[to_diagonal > cost] <= cost
    if not bound.any(axis=1).all():
        return False
    return bool((maximum_bipartite_matching(csr_array(bound), perm_type="column") >= 0).all())
