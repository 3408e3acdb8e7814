"""Persistence diagrams: births and deaths per homology dimension, and how they were obtained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
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

    @property
    def longest(self) -> float:
        """The length of the longest bar that dies; 0 where there is none."""
        lifetimes = self.finite().lifetimes
        return float(lifetimes.max()) if len(lifetimes) else 0.0

    def finite(self) -> "Bars":
        """The bars that die."""
        kept = torch.isfinite(self.deaths)
        return Bars(self.births[kept], self.deaths[kept])


@dataclass(frozen=True, slots=True, eq=False)
class PersistenceDiagram:
    """The Vietoris-Rips persistence diagram of a cloud, `diagram[k]` being its bars in dimension k.

    Filtration values are edge lengths. H0 keeps its zero-length bars: n deaths, one of them inf.

    `n_points` is the size of the cloud, `diameter` the largest distance between two of its points. H0 is exact. Where
    dimensions 1 and up are those of landmarks, `exact` is False, and each is known up to twice `covering_radius`
    (bottleneck distance). `engine` computed them.
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
    def landmark_error(self) -> float:
        """The error of landmarks as a share of the diameter: 2 rho / diameter; 0 where all points were used."""
        return 0.0 if self.exact or self.diameter == 0.0 else 2.0 * self.covering_radius / self.diameter

    def is_vacuous(self, k: int) -> bool:
        """Whether the bound says nothing about dimension k: a diagram without any finite bar lies within it.

        Bars of length up to 4 rho do, since they are at most 2 rho away from the diagonal.

        >>> found = Bars(torch.tensor([1.0]), torch.tensor([1.5])), Bars(torch.tensor([1.0]), torch.tensor([1.5]))
        >>> [PersistenceDiagram(found, 9, 2.0, rho, exact=False).is_vacuous(1) for rho in (0.1, 0.2)]
        [False, True]
        """
        # H0 is exact with landmarks, too: a bar for each point, of which one never dies and may have been left out.
        if self.exact or (k == 0 and len(self[0].finite()) >= self.n_points - 1):
            return False
        return self[k].longest <= 4.0 * self.covering_radius

    def to_numpy(self) -> list[np.ndarray]:
        """One (k, 2) array of births and deaths per dimension, as ripser and giotto-ph return them."""
        return [torch.stack([b.births, b.deaths], dim=1).detach().cpu().numpy() for b in self.bars]

    @staticmethod
    def from_numpy(
        intervals: Sequence[np.ndarray], n_points: int, diameter: float, engine: str = "given"
    ) -> "PersistenceDiagram":
        """A diagram from one (k, 2) array of births and deaths per dimension.

        >>> diagram = PersistenceDiagram.from_numpy([np.array([[0.0, 2.0], [0.0, np.inf]])], 2, 2.0)
        >>> diagram[0].deaths
        tensor([2., inf], dtype=torch.float64)
        """
        for k, array in enumerate(intervals):
            if array.ndim != 2 or array.shape[1] != 2:
                raise ValueError(f"expected intervals of shape (k, 2) in dimension {k}, got {array.shape}")
        bars = tuple(Bars(*torch.from_numpy(np.array(array)).unbind(1)) for array in intervals)
        return PersistenceDiagram(bars, n_points, diameter, engine=engine)

    def to_giotto(self) -> Float[np.ndarray, "1 k 3"]:
        """giotto-tda's array of one diagram: rows (birth, death, dimension), without essential bars."""
        parts = [
            np.column_stack([points, np.full(len(points), k)])
            for k, points in enumerate(self.without_essential().to_numpy())
        ]
        return np.concatenate(parts)[None]

    @staticmethod
    def from_giotto(array: Float[np.ndarray, "1 k 3"], n_points: int, diameter: float) -> "PersistenceDiagram":
        """A diagram from giotto-tda's array of one diagram, whose padding on the diagonal is dropped in H1+.

        giotto-tda leaves out the one essential class of H0, which is put back.
        """
        birth, death, dimension = array[0].T
        intervals = []
        for k in range(int(dimension.max(initial=0)) + 1):
            chosen = (dimension == k) & ((death > birth) | (k == 0))
            intervals.append(np.column_stack([birth[chosen], death[chosen]]))
        if n_points > 0:
            intervals[0] = np.concatenate([intervals[0], [[0.0, np.inf]]])
        return PersistenceDiagram.from_numpy(intervals, n_points, diameter)

    def without_essential(self) -> "PersistenceDiagram":
        """The diagram of the bars that die."""
        return replace(self, bars=tuple(bars.finite() for bars in self.bars))

    @property
    def max_dim(self) -> int:
        """The highest homology dimension held."""
        return len(self.bars) - 1
