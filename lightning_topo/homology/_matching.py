"""Distances between persistence diagrams, exact up to rounding."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from lightning_topo.geometry import StepDistortion
from lightning_topo.homology._diagram import Bars, PersistenceDiagram

Intervals = Float[np.ndarray, "_ 2"]


def bottleneck(a: PersistenceDiagram, b: PersistenceDiagram, k: int) -> float:
    """Compute the bottleneck distance between two diagrams in homology dimension k.

    It is the smallest ε for which bars can be matched as follows. Births and deaths of matched bars differ by at most
    ε, and all other bars have a lifetime of at most 2 ε. Bars that never die match only each other;
    the distance is inf if their numbers differ.

    In dimension 0 all births are 0. Let s_i and t_i be the sorted finite deaths of the two diagrams, the shorter list
    filled up with zeros. Then the distance is the largest min(|s_i - t_i|, max(s_i, t_i) / 2).

    >>> from lightning_topo.homology import persistence
    >>> cloud = torch.tensor([[0.0], [1.0], [5.0]])
    >>> bottleneck(persistence(cloud, 0), persistence(1.5 * cloud, 0), 0)
    2.0
    """
    essential = np.abs(_essential_gap(a[k], b[k])).max(initial=0.0)
    x, y = (_finite_intervals(diagram[k]) for diagram in (a, b))
    if k > 0:
        return max(float(essential), _bottleneck(x, y))
    size = max(len(x), len(y))
    x, y = (np.sort(np.pad(points[:, 1], (0, size - len(points)))) for points in (x, y))
    return max(float(essential), float(np.minimum(np.abs(x - y), np.maximum(x, y) / 2).max(initial=0.0)))


def wasserstein(a: PersistenceDiagram, b: PersistenceDiagram, k: int, order: float = 1.0) -> float:
    """Compute the Wasserstein distance between two diagrams in homology dimension k.

    It is the smallest (Σ cost^order)^(1/order) over all matchings of bars. Two matched bars cost the larger of the
    differences between their births and between their deaths; an unmatched bar costs half its lifetime. Bars that
    never die match only each other; the distance is inf if their numbers differ. Time grows with the cube of the
    number of bars.

    Raises:
        ValueError: `order` is below 1 or not finite. `bottleneck` is the limit of large orders.

    >>> from lightning_topo.homology import persistence
    >>> cloud = torch.tensor([[0.0], [1.0], [5.0]])
    >>> wasserstein(persistence(cloud, 0), persistence(1.5 * cloud, 0), 0)
    2.5
    """
    if not 1 <= order < math.inf:
        raise ValueError(f"expected a finite order >= 1, got {order}")
    gaps = _essential_gap(a[k], b[k])
    x, y = (_finite_intervals(diagram[k]) for diagram in (a, b))
    between = _costs(x, y) ** order
    x_alone, y_alone = (((points[:, 1] - points[:, 0]) / 2) ** order for points in (x, y))
    # A pair is worth matching where this is cheaper than leaving both bars alone.
    gain = np.maximum(x_alone[:, None] + y_alone - between, 0)
    i, j = linear_sum_assignment(gain, maximize=True)
    matched = gain[i, j] > 0
    i, j = i[matched], j[matched]
    total = between[i, j].sum() + np.delete(x_alone, i).sum() + np.delete(y_alone, j).sum()
    return float((total + (np.abs(gaps) ** order).sum()) ** (1 / order))


def log_bottleneck(a: PersistenceDiagram, b: PersistenceDiagram, k: int) -> float:
    """Compute the bottleneck distance between two diagrams in homology dimension k on a logarithmic scale.

    Bars have the coordinates (log birth, log death), in dimension 0 log death alone. `log_bottleneck_bound` bounds
    this distance by how much a step changed the distances between points.

    In dimension 0 it is the largest |log s_i - log t_i|, with s_i and t_i the sorted deaths of the two diagrams. It is
    inf there if one diagram has more bars, or more bars of length zero, than the other.

    Raises:
        ValueError: k >= 1 and a bar never dies, which does not happen in a full Vietoris-Rips filtration.

    >>> from lightning_topo.homology import persistence
    >>> cloud = torch.tensor([[0.0], [1.0], [5.0]])
    >>> round(log_bottleneck(persistence(cloud, 0), persistence(2 * cloud, 0), 0), 6)  # log 2
    0.693147
    """
    if k == 0:
        return _log_bottleneck_h0(a[0], b[0])
    if a[k].n_essential or b[k].n_essential:
        raise ValueError(f"expected every bar to die in dimension {k} >= 1 of a Rips filtration")
    return _bottleneck(np.log(_finite_intervals(a[k])), np.log(_finite_intervals(b[k])))


def log_bottleneck_bound(step: StepDistortion) -> float:
    """Bound `log_bottleneck` between the Vietoris-Rips diagrams before and after a step: max(log b, -log a).

    a is `step.contraction`, the smallest ratio of a distance after the step to that before it; b is `step.expansion`,
    the largest. A bar with log(death / birth) above twice this bound survives the step. The bound is inf if neurons
    merged or split. If the cloud may be rescaled by the best factor, it falls to `step.log_distortion` / 2.

    >>> from lightning_topo.geometry import step_distortion
    >>> cloud = torch.tensor([[0.0], [1.0], [5.0]])
    >>> round(log_bottleneck_bound(step_distortion(cloud, 2 * cloud)), 6)
    0.693147
    """
    if step.contraction == 0 or step.expansion == math.inf:
        return math.inf
    return max(math.log(step.expansion), -math.log(step.contraction))


def _log_bottleneck_h0(a: Bars, b: Bars) -> float:
    """All births are 0, at log-distance infinity from the diagonal: so every bar is matched, in order."""
    if len(a) != len(b):
        return math.inf
    x, y = a.deaths.double().sort().values, b.deaths.double().to(a.deaths.device).sort().values
    different = x != y
    if not different.any():
        return 0.0
    return float((x[different].log() - y[different].log()).abs().max())


def _finite_intervals(bars: Bars) -> Intervals:
    """The finite bars of positive length."""
    bars = bars.finite()
    points = torch.stack([bars.births, bars.deaths], dim=1).double().cpu().numpy()
    return points[points[:, 1] > points[:, 0]]


def _essential_gap(a: Bars, b: Bars) -> Float[np.ndarray, " k"]:
    """Differences of the births of essential bars, matched in order; infinite where their numbers differ."""
    x, y = (np.sort(bars.births[bars.deaths.isinf()].double().cpu().numpy()) for bars in (a, b))
    return x - y if len(x) == len(y) else np.array([math.inf])


def _costs(a: Intervals, b: Intervals) -> Float[np.ndarray, "_ _"]:
    """Distances between intervals in the maximum norm."""
    return np.abs(a[:, None] - b[None]).max(axis=2, initial=0.0)


def _bottleneck(a: Intervals, b: Intervals) -> float:
    """Exact bottleneck distance of finite intervals: the least feasible one of the costs that occur."""
    between = _costs(a, b)
    a_alone, b_alone = ((points[:, 1] - points[:, 0]) / 2 for points in (a, b))
    costs = np.unique(np.concatenate([between.ravel(), a_alone, b_alone, [0.0]]))
    return float(
        _least(costs, lambda cost: _matchable(between, a_alone, cost) and _matchable(between.T, b_alone, cost))
    )


def _least(candidates: Float[np.ndarray, " c"], feasible: Callable[[float], bool]) -> float:
    """The least feasible one of ascending candidates; the last is feasible, and feasibility monotone."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if feasible(float(candidates[middle])) else (middle + 1, high)
    return float(candidates[low])


def _matchable(between: Float[np.ndarray, "k m"], alone: Float[np.ndarray, " k"], cost: float) -> bool:
    """Whether all rows that may not stay alone at this cost have partners among the columns.

    Where that holds for rows and for columns, one matching covers both (Mendelsohn and Dulmage, 1958).
    """
    partners = between[alone > cost] <= cost
    if not partners.any(axis=1).all():
        return False
    return bool((maximum_bipartite_matching(csr_array(partners), perm_type="column") >= 0).all())
