"""Persistence diagrams: births and deaths per homology dimension, and how they were obtained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """The bars of a persistence diagram in one homology dimension.

    Bar i is born at scale `births[i]` and dies at scale `deaths[i]`. A bar that never dies, called essential, has death
    inf. Raises `ValueError` unless both tensors have the same shape (k,).

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
        """death - birth of each bar; inf for bars that never die."""
        return self.deaths - self.births

    @property
    def n_essential(self) -> int:
        """Number of bars that never die."""
        return int(torch.isinf(self.deaths).sum())

    @property
    def longest(self) -> float:
        """Lifetime of the longest bar that dies; 0 if there is none."""
        lifetimes = self.finite().lifetimes
        return float(lifetimes.max()) if len(lifetimes) else 0.0

    def finite(self) -> "Bars":
        """Return the bars that die."""
        kept = torch.isfinite(self.deaths)
        return Bars(self.births[kept], self.deaths[kept])


@dataclass(frozen=True, slots=True, eq=False)
class PersistenceDiagram:
    """The Vietoris-Rips persistence diagram of a cloud: `diagram[k]` holds the bars of homology dimension k.

    Births and deaths are edge lengths. Dimension 0 keeps its bars of length zero: n points have n bars, one of which
    never dies. `diagram[k]` raises `IndexError` if dimension k was not computed.

    Attributes:
        bars: The bars of dimension 0, 1, ..., max_dim.
        n_points: Number of points of the cloud.
        diameter: Largest distance between two points.
        covering_radius: Largest distance of a point to its nearest landmark; 0 if no landmarks were chosen.
        engine: Name of the library that computed dimensions 1 and up; "mst" if only dimension 0 was computed.
        exact: False if dimensions 1 and up were computed from landmarks: their bottleneck distance to the bars of the
            whole cloud is at most 2 * covering_radius. `persistence` computes dimension 0 from all points in any case.
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
        """2 * covering_radius / diameter: the error bound of landmarks as a share of the diameter; 0 if `exact`."""
        return 0.0 if self.exact or self.diameter == 0.0 else 2.0 * self.covering_radius / self.diameter

    def is_vacuous(self, k: int) -> bool:
        """Whether the error bound of landmarks leaves open that dimension k has no finite bar at all.

        True if no finite bar is longer than 4 * covering_radius: each is then within the bound, 2 * covering_radius, of
        a bar of length zero. False for an exact diagram, and for k = 0 if every point has its bar.

        >>> found = Bars(torch.tensor([1.0]), torch.tensor([1.5])), Bars(torch.tensor([1.0]), torch.tensor([1.5]))
        >>> [PersistenceDiagram(found, 9, 2.0, rho, exact=False).is_vacuous(1) for rho in (0.1, 0.2)]
        [False, True]
        """
        # H0 is exact with landmarks, too: a bar for each point, of which one never dies and may have been left out.
        if self.exact or (k == 0 and len(self[0].finite()) >= self.n_points - 1):
            return False
        return self[k].longest <= 4.0 * self.covering_radius

    def to_numpy(self) -> list[np.ndarray]:
        """Return one array of (birth, death) rows per dimension, in the format of ripser and giotto-ph."""
        return [torch.stack([b.births, b.deaths], dim=1).detach().cpu().numpy() for b in self.bars]

    @staticmethod
    def from_numpy(
        intervals: Sequence[np.ndarray], n_points: int, diameter: float, engine: str = "given"
    ) -> "PersistenceDiagram":
        """Build a diagram from one array of (birth, death) rows per dimension 0, 1, ...

        Raises:
            ValueError: An array is not of shape (number of bars, 2).

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
        """Return the finite bars as giotto-tda's array of one diagram, with rows (birth, death, dimension)."""
        parts = [
            np.column_stack([points, np.full(len(points), k)])
            for k, points in enumerate(self.without_essential().to_numpy())
        ]
        return np.concatenate(parts)[None]

    @staticmethod
    def from_giotto(array: Float[np.ndarray, "1 k 3"], n_points: int, diameter: float) -> "PersistenceDiagram":
        """Build a diagram from giotto-tda's array of one diagram, with rows (birth, death, dimension).

        giotto-tda pads arrays with bars of length zero; they are dropped in dimensions 1 and up. It leaves out the one
        essential bar of dimension 0; that bar is added.
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
        """Return the diagram without the bars that never die."""
        return replace(self, bars=tuple(bars.finite() for bars in self.bars))

    @property
    def max_dim(self) -> int:
        """The highest homology dimension in the diagram."""
        return len(self.bars) - 1
