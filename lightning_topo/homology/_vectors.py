"""Persistence diagrams as vectors: curves, landscapes and images over given scales."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.homology._diagram import PersistenceDiagram


def betti_curve(diagram: PersistenceDiagram, k: int, scales: Float[Tensor, " s"]) -> Int[Tensor, " s"]:
    """Compute the k-th Betti number at each scale: the number of bars of dimension k with birth <= scale < death.

    Scales are edge lengths, in the units of the cloud.

    >>> from lightning_topo.homology import persistence
    >>> diagram = persistence(torch.tensor([[0.0], [1.0], [5.0]]), max_dim=0)
    >>> betti_curve(diagram, 0, torch.tensor([0.5, 1.0, 4.0]))
    tensor([3, 2, 1])
    """
    births, deaths = (x.sort().values for x in (diagram[k].births, diagram[k].deaths))
    scales = scales.to(births)
    born = torch.searchsorted(births, scales, right=True)
    return born - torch.searchsorted(deaths, scales, right=True)


def crocker(diagrams: Sequence[PersistenceDiagram], k: int, scales: Float[Tensor, " s"]) -> Int[Tensor, "t s"]:
    """Compute the CROCKER matrix of a run: the k-th Betti number of each diagram (rows) at each scale (columns).

    `diagrams` are the run's diagrams in the order of time. Scales are edge lengths, in the units of the clouds.

    Source: Topaz, Ziegelmeier, Halverson, Topological data analysis of biological aggregation models (2015).

    >>> from lightning_topo.homology import persistence
    >>> cloud = torch.tensor([[0.0], [1.0], [5.0]])
    >>> crocker([persistence(cloud, 0), persistence(2 * cloud, 0)], 0, torch.tensor([1.0, 4.0]))
    tensor([[2, 1],
            [3, 2]])
    """
    if not diagrams:
        return torch.empty((0, len(scales)), dtype=torch.long, device=scales.device)
    return torch.stack([betti_curve(diagram, k, scales).to(scales.device) for diagram in diagrams])


def landscape(
    diagram: PersistenceDiagram, k: int, scales: Float[Tensor, " s"], depth: int = 5
) -> Float[Tensor, "depth s"]:
    """Compute the first `depth` persistence landscapes of the finite bars of dimension k, at the given scales.

    The m-th landscape at scale t is the m-th largest value of max(0, min(t - birth, death - t)) over the bars; 0 if
    there are fewer bars. If the bottleneck distance of two diagrams is ε, their landscapes differ by at most ε at
    every scale.

    Raises:
        ValueError: `depth` is below 1.

    Source: Bubenik, Statistical topological data analysis using persistence landscapes (2015).

    >>> diagram = PersistenceDiagram.from_numpy([torch.tensor([[0.0, 4.0], [1.0, 3.0]]).numpy()], 0, 4.0)
    >>> landscape(diagram, 0, torch.tensor([1.0, 2.0]), depth=2)
    tensor([[1., 2.],
            [0., 1.]])
    """
    if depth < 1:
        raise ValueError(f"expected depth >= 1, got {depth}")
    bars = diagram[k].finite()
    scales = scales.to(bars.births)
    tents = torch.minimum(scales - bars.births[:, None], bars.deaths[:, None] - scales).clamp_(min=0)
    padded = torch.cat([tents, tents.new_zeros((max(0, depth - len(tents)), len(scales)))])
    return padded.topk(depth, dim=0).values


def persistence_image(
    diagram: PersistenceDiagram,
    k: int,
    births: Float[Tensor, " b"],
    lifetimes: Float[Tensor, " l"],
    bandwidth: float,
) -> Float[Tensor, "b l"]:
    """Compute the persistence image of the finite bars of dimension k on a grid.

    Each bar adds its lifetime times a normal density around (birth, lifetime), with standard deviation `bandwidth` in
    the units of the cloud. Rows of the image belong to the grid's `births`, columns to its `lifetimes`. The image is
    evaluated at the points of the grid, not integrated over pixels.

    Raises:
        ValueError: `bandwidth` is not positive.

    Source: Adams et al., Persistence images (2017).

    >>> diagram = PersistenceDiagram.from_numpy([torch.tensor([[0.0, 2.0]]).numpy()], 0, 2.0)
    >>> image = persistence_image(diagram, 0, torch.tensor([0.0]), torch.tensor([2.0]), bandwidth=1.0)
    >>> round(float(image), 6)  # 2 / (2 π)
    0.31831
    """
    if bandwidth <= 0:
        raise ValueError(f"expected bandwidth > 0, got {bandwidth}")
    bars = diagram[k].finite()

    def density(grid: Tensor, centres: Tensor) -> Tensor:
        return torch.exp(-((grid.to(centres) - centres[:, None]) ** 2) / (2 * bandwidth**2))

    weights = bars.lifetimes / (2 * torch.pi * bandwidth**2)
    return torch.einsum("k,kb,kl->bl", weights, density(births, bars.births), density(lifetimes, bars.lifetimes))
