"""Persistence diagrams: births and deaths per homology dimension, and how they were obtained."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """The bars of one homology dimension: bar i is born at `births[i]` and dies at `deaths[i]`, inf if never.

    >>> bars = Bars(births=torch.zeros(2), deaths=torch.tensor([1.0, torch.inf]))
    >>> len(bars), bars.n_essential, bars.lifetimes
    (2, 1, tensor([1., inf]))
    """

    births: Float[Tensor, " k"]
    deaths: Float[Tensor, " k"]

    def __post_init__(self) -> None:
        if self.births.ndim != 1 or self.births.shape != self.deaths.shape:
            raise ValueError(
                "expected births and deaths of one shape (k,), "
                f"got {tuple(self.births.shape)} and {tuple(self.deaths.shape)}"
            )

    def __len__(self) -> int:
        return len(self.births)

    @property
    def lifetimes(self) -> Float[Tensor, " k"]:
        """death - birth of each bar; inf for essential ones."""
        return self.deaths - self.births

    @property
    def n_essential(self) -> int:
        """Number of bars that never die."""
        return int(torch.isinf(self.deaths).sum())

    def finite(self) -> "Bars":
        """The bars that die."""
        kept = torch.isfinite(self.deaths)
        return Bars(self.births[kept], self.deaths[kept])


@dataclass(frozen=True, slots=True, eq=False)
class PersistenceDiagram:
    """The Vietoris-Rips persistence diagram of a cloud, `diagram[k]` being its bars in dimension k.

    Filtration values are edge lengths. H0 keeps its zero-length bars: n deaths, one of them inf.

    `n_points` is the size of the whole cloud; where only landmarks were used, `exact` is False and
    every bar is known up to twice `covering_radius` (bottleneck distance). `diameter` is the largest
    distance between two of the points used. `engine` computed dimensions 1 and up.
    """

    bars: tuple[Bars, ...]
    n_points: int
    diameter: float
    covering_radius: float = 0.0
    engine: str = "mst"
    exact: bool = True

    def __getitem__(self, k: int) -> Bars:
        if not 0 <= k < len(self.bars):
            raise IndexError(f"expected a homology dimension between 0 and {self.max_dim}, got {k}")
        return self.bars[k]

    def __len__(self) -> int:
        return len(self.bars)

    def __iter__(self) -> Iterator[Bars]:
        return iter(self.bars)

    @property
    def max_dim(self) -> int:
        """The highest homology dimension held."""
        return len(self.bars) - 1
