"""The fate of neurons: how many are independent, vanishing, aligned or merged, and their effective number.

All counts come from products x_i·x_j, tile by tile: no n by n matrix is held.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_topo.geometry._coincidence import TOLERANCE, merged_sizes
from lightning_topo.geometry._distances import (
    binary_scale,
    check_cloud,
    mean_point,
    row_blocks,
    row_squares,
    upper_tiles,
    wide_norms,
)
from lightning_topo.geometry._precision import full_precision, real_dtype, wide_dtype

INDEPENDENCE = 0.1
"""Smallest 2|a - b|² / (|a|² + |b|²) of two independent neurons."""

VANISHING = 0.1
"""A neuron has vanished below this share of the largest norm."""

ALIGNMENT = 0.95
"""Two neurons are aligned above this cosine."""

_TILE = 1024


@dataclass(frozen=True, slots=True)
class NeuronFate:
    """Counts of the independent, vanishing, aligned and merged neurons of a cloud: the result of `neuron_fate`.

    All counts are of the measured neurons: of a random sample, if the cloud is larger than `max_neurons`.

    Attributes:
        n: Number of neurons of the cloud.
        n_measured: Number of neurons measured.
        independent_neurons: Number of neurons kept when, from the longest to the shortest, a neuron is kept if it is
            independent of all those kept before it.
        vanishing_neurons: Number of neurons whose norm is below a share of the largest norm, or is 0.
        aligned_clusters: Number of clusters of neurons whose incoming weights point the same way; neurons without
            weight do not count. None if no incoming weights were given.
        effective_neurons: The participation ratio (Σ λ)² / Σ λ² of the eigenvalues λ of the cloud's covariance: from 1,
            all neurons on a line, to min(n_measured - 1, d); 0 if they do not differ beyond rounding.
        multiplicity: Sizes of the classes of two or more neurons that are equal up to rounding, as in
            `distinct_neurons`; the largest first, empty if no neurons have merged.
    """

    n: int
    n_measured: int
    independent_neurons: int
    vanishing_neurons: int
    aligned_clusters: int | None
    effective_neurons: float
    multiplicity: tuple[int, ...]

    @property
    def subsampled(self) -> bool:
        """Whether only a sample of the neurons was measured."""
        return self.n_measured < self.n

    @property
    def largest_multiplicity(self) -> int:
        """Number of neurons in the largest class of equal neurons: 1 if none have merged, 0 for an empty cloud."""
        return max(self.multiplicity, default=min(self.n_measured, 1))


def neuron_fate(
    points: Float[Tensor, "n d"],
    incoming: Float[Tensor, "m k"] | None = None,
    *,
    independence: float = INDEPENDENCE,
    vanishing: float = VANISHING,
    alignment: float = ALIGNMENT,
    max_neurons: int | None = None,
    generator: torch.Generator | None = None,
) -> NeuronFate:
    """Count how many neurons of a cloud are independent, vanishing, aligned or merged.

    Args:
        points: The neurons, one row each.
        incoming: The incoming weights, one row per neuron, to count aligned clusters; None leaves that count out.
        independence: Neurons a and b are independent if 2|a - b|² / (|a|² + |b|²) is at least this; between 0 and 2.
        vanishing: A neuron vanishes if its norm is below this share of the largest norm, or is 0.
        alignment: Two neurons are aligned if the cosine of their incoming weights is above this. Clusters are the
            connected components of aligned neurons.
        max_neurons: Measure a random sample of this many neurons if there are more; None measures all.
        generator: Draws the sample; None seeds a generator with 0.

    Raises:
        TypeError: `points` or `incoming` is not of a real floating-point dtype.
        ValueError: `points` or `incoming` is not two-dimensional or not finite, their numbers of rows differ,
            `independence` is not between 0 and 2, or `max_neurons` is below 1.

    >>> fate = neuron_fate(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.1]]))
    >>> fate.independent_neurons, fate.vanishing_neurons, fate.multiplicity, round(fate.effective_neurons, 2)
    (3, 1, (2,), 1.31)
    """
    check_cloud(points)
    n = len(points)
    if incoming is not None and len(incoming) != n:
        raise ValueError(f"expected incoming weights of {n} neurons, got {len(incoming)} rows")
    if max_neurons is not None and max_neurons < 1:
        raise ValueError(f"expected max_neurons >= 1, got {max_neurons}")
    if max_neurons is not None and n > max_neurons:
        generator = generator or torch.Generator().manual_seed(0)
        chosen = torch.randperm(n, generator=generator, device=generator.device)[:max_neurons].to(points.device)
        points, incoming = points[chosen], None if incoming is None else incoming[chosen]
    return NeuronFate(
        n=n,
        n_measured=len(points),
        independent_neurons=independent_neurons(points, independence),
        vanishing_neurons=vanishing_neurons(points, vanishing),
        aligned_clusters=None if incoming is None else aligned_clusters(incoming, alignment),
        effective_neurons=effective_neurons(points),
        multiplicity=multiplicity(points),
    )


def independent_neurons(points: Float[Tensor, "n d"], threshold: float = INDEPENDENCE) -> int:
    """Count the neurons kept when a neuron is kept if it is independent of all those kept before it:

        2|a - b|² / (|a|² + |b|²) >= threshold    for every kept neuron b and the next neuron a.

    Neurons are taken by descending norm, so that the count does not depend on their order. Two zeros are dependent.

    Raises:
        TypeError, ValueError: as `check_cloud`; a threshold outside (0, 2).

    Source: Chen, Kunin, Yamamura, Ganguli, Stochastic collapse, arXiv:2306.04251.

    >>> independent_neurons(torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.0, 1.0]]))
    2
    """
    check_cloud(points)
    if not 0.0 < threshold < 2.0:
        raise ValueError(f"expected 0 < threshold < 2, got {threshold}")
    with full_precision(points.device):
        rows = _scaled(points)
        rows = rows[_by_descending_norm(rows)]
        squares = row_squares(rows)
        n_present = int((squares > 0).sum())
        # a and b are dependent where 4 a·b > (2 - threshold) (|a|² + |b|²): rows that are kept move to the front.
        rows *= 2.0 / (2.0 - threshold) ** 0.5
        n_kept = 0
        for start in range(0, n_present, _TILE):
            block = slice(start, min(start + _TILE, n_present))
            free = torch.arange(block.start, block.stop, device=points.device)
            for kept in range(0, n_kept, _TILE):
                before = slice(kept, min(kept + _TILE, n_kept))
                free = free[~_exceeds(rows[free], squares[free], rows[before], squares[before]).any(dim=1)]
            chosen = free[_greedy(_exceeds(rows[free], squares[free], rows[free], squares[free]))]
            front = slice(n_kept, n_kept + len(chosen))
            rows[front], squares[front] = rows[chosen], squares[chosen]
            n_kept += len(chosen)
        return n_kept + (n_present < len(rows))


def vanishing_neurons(points: Float[Tensor, "n d"], threshold: float = VANISHING) -> int:
    """Count the neurons that are 0 or have |x_i| < threshold * max_j |x_j|.

    Raises:
        TypeError, ValueError: as `check_cloud`.

    >>> vanishing_neurons(torch.tensor([[1.0, 0.0], [0.05, 0.0], [0.0, 0.0]]))
    2
    """
    check_cloud(points)
    if not len(points):
        return 0
    norms = torch.linalg.vector_norm(_scaled(points), dim=1)
    return int(((norms < threshold * norms.max()) | (norms == 0)).sum())


def aligned_clusters(incoming: Float[Tensor, "n k"], threshold: float = ALIGNMENT) -> int:
    """Count the directions to which the incoming weights have condensed.

    It is the number of connected components of the graph that joins neurons whose cosine w_i·w_j / |w_i| |w_j|
    exceeds the threshold. A neuron without any weight has no direction and is not counted.

    Raises:
        TypeError, ValueError: as `check_cloud`.

    Source: condensation as in arXiv:2504.09484.

    >>> aligned_clusters(torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.0, 0.0]]))
    2
    """
    check_cloud(incoming, "incoming weights")
    with full_precision(incoming.device):
        rows = _scaled(incoming)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        present = norms[:, 0] > 0
        rows = rows[present] / norms[present]
        labels = torch.arange(len(rows), device=rows.device)
        for above, left in upper_tiles(len(rows), _TILE):
            joined = rows[above] @ rows[left].T > threshold
            joined &= labels[above, None] != labels[left]
            i, j = joined.nonzero(as_tuple=True)
            if len(i):
                labels = _joined(labels, labels[above][i], labels[left][j])
        return len(labels.unique())


def effective_neurons(points: Float[Tensor, "n d"]) -> float:
    """Compute the participation ratio of the eigenvalues λ of the cloud's covariance:

        (Σ λ)² / Σ λ²,

    from 1, where all neurons lie on a line, to min(n - 1, d), where they spread alike in all directions; 0 where
    they do not spread beyond the rounding of their dtype. No eigenvalue is computed: Σ λ and Σ λ² are the trace and
    the squared norm of the smaller of the two Gram matrices.

    Raises:
        TypeError, ValueError: as `check_cloud`.

    >>> effective_neurons(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    2.0
    """
    check_cloud(points)
    if len(points) < 2:
        return 0.0
    with full_precision(points.device):
        scale, wide = binary_scale(points), wide_dtype(points.device)
        points, mean = points.detach(), mean_point(points)
        centred = torch.empty_like(points, dtype=real_dtype(points))
        largest = torch.zeros((), dtype=wide, device=points.device)
        for some in row_blocks(points):
            centred[some] = (points[some].to(wide) - mean) * scale
            largest = torch.maximum(largest, wide_norms(points[some] * scale).max())
        spread = wide_norms(centred)
        if spread.max() <= TOLERANCE * torch.finfo(points.dtype).eps * largest:
            return 0.0
        rows = centred if len(centred) <= centred.shape[1] else centred.T
        fourth = torch.zeros((), dtype=wide, device=points.device)
        for above, left in upper_tiles(len(rows), _TILE):
            product = (rows[above] @ rows[left].T).to(wide).square().sum()
            fourth += product if above == left else 2 * product
        return float(spread.square().sum().square() / fourth)


def multiplicity(points: Float[Tensor, "n d"]) -> tuple[int, ...]:
    """Return the sizes of the classes of two or more neurons that are equal up to rounding, the largest first.

    Neurons are equal as in `distinct_neurons`, whose count is n - sum(sizes) + len(sizes).

    Raises:
        TypeError, ValueError: as `check_cloud`.

    >>> multiplicity(torch.tensor([[1.0], [2.0], [1.0], [2.0], [1.0], [3.0]]))
    (3, 2)
    """
    check_cloud(points)
    if len(points) < 2:
        return ()
    return merged_sizes(points)


def _scaled(points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The cloud in at least float32, its largest coordinate near 1."""
    points = points.detach()
    return points.to(real_dtype(points)) * binary_scale(points)


def _by_descending_norm(rows: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """The rows in an order that depends on their values alone: ties are broken along a fixed direction."""
    wide = wide_dtype(rows.device)
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = direction.to(rows.device, wide)
    wide_blocks = [(block @ direction, block.square().sum(dim=1)) for block in _widened(rows)]
    shadows, squares = (torch.cat(parts) for parts in zip(*wide_blocks, strict=True))
    order = shadows.argsort(stable=True)
    return order[squares[order].argsort(descending=True, stable=True)]


def _widened(rows: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "m d"]]:
    for some in row_blocks(rows):
        yield rows[some].to(wide_dtype(rows.device))


def _exceeds(
    a: Float[Tensor, "p d"], a_squares: Float[Tensor, " p"], b: Float[Tensor, "q d"], b_squares: Float[Tensor, " q"]
) -> Bool[Tensor, "p q"]:
    """Whether a·b > |a|² + |b|², the squares given apart."""
    return torch.addmm(b_squares.expand(len(a), -1), a, b.T, beta=-1) > a_squares[:, None]


def _greedy(dependent: Bool[Tensor, "p p"]) -> Int[Tensor, " m"]:
    """The rows kept when each is dropped that depends on one kept before it."""
    matrix = dependent.cpu().numpy()
    kept: list[int] = []
    dropped = np.zeros(len(matrix), dtype=bool)
    for i in range(len(matrix)):
        if not dropped[i]:
            kept.append(i)
            dropped |= matrix[i]
    return torch.tensor(kept, dtype=torch.long, device=dependent.device)


def _joined(labels: Int[Tensor, " n"], i: Int[Tensor, " p"], j: Int[Tensor, " p"]) -> Int[Tensor, " n"]:
    """Labels after joining the components with labels i and j, pair by pair."""
    n, edges = len(labels), torch.stack([i, j]).cpu().numpy()
    graph = coo_array((np.ones(edges.shape[1], dtype=np.int32), tuple(edges)), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).to(labels)[labels]
