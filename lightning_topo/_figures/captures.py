"""Persistence diagrams through a run, as arrays: the bars of a group, and its Betti numbers over scale and step.

A CROCKER plot (contour realization of computed k-dimensional hole evolution in the Rips complex) shows the Betti
number b_k of the Rips complex at every scale and time. Source: Topaz, Ziegelmeier, Halverson, PLoS ONE 10(5), 2015.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float, Num

if TYPE_CHECKING:
    from lightning_topo.homology import PersistenceDiagram

Pairs = Float[np.ndarray, "_ 2"]
"""(birth, death) of each bar."""
NO_BARS = np.zeros((0, 2))
_T = TypeVar("_T")
_BLOCK = re.compile(r"\[(\d+)\]$")


@dataclass(frozen=True, slots=True, eq=False)
class CapturedDiagram:
    """A `PersistenceDiagram` as a record keeps it: arrays, `pairs[k]` being the bars of dimension k.

    A page is drawn from these, so that the process that writes it need not import torch.
    """

    pairs: tuple[Pairs, ...]
    n_points: int
    diameter: float
    covering_radius: float = 0.0
    engine: str = "mst"
    exact: bool = True

    @property
    def max_dim(self) -> int:
        """The highest dimension."""
        return len(self.pairs) - 1

    @property
    def landmark_error(self) -> float:
        """As `PersistenceDiagram.landmark_error`."""
        return 0.0 if self.exact or self.diameter == 0.0 else 2.0 * self.covering_radius / self.diameter

    def is_vacuous(self, k: int) -> bool:
        """As `PersistenceDiagram.is_vacuous`."""
        births, deaths = self.pairs[k].T
        finite = np.isfinite(deaths)
        if self.exact or (k == 0 and finite.sum() >= self.n_points - 1):
            return False
        return float((deaths - births)[finite].max(initial=0.0)) <= 4.0 * self.covering_radius

    def diagram(self) -> "PersistenceDiagram":
        """The diagram itself, in tensors that share the memory."""
        import torch

        from lightning_topo.homology import Bars, PersistenceDiagram

        bars = tuple(Bars(*torch.from_numpy(pairs).unbind(dim=1)) for pairs in self.pairs)
        return PersistenceDiagram(bars, self.n_points, self.diameter, self.covering_radius, self.engine, self.exact)


@dataclass(frozen=True, slots=True)
class Crocker:
    """`betti[k][i, j]` is b_k at the capture of `steps[i]` and at the scale `scales[j]`."""

    steps: tuple[int, ...]
    scales: tuple[float, ...]
    betti: tuple[Num[np.ndarray, "i j"], ...]


def block_of(name: str, names: Collection[str]) -> tuple[str, int]:
    """Group and block of a diagram's name: a group of several blocks has a diagram for each, called `group[b]`.

    >>> block_of("heads[3]", ["heads[3]", "heads[0]"]), block_of("odd[3]", ["odd[3]"]), block_of("net.0", ["net.0"])
    (('heads', 3), ('odd[3]', 0), ('net.0', 0))
    """
    found = _BLOCK.search(name)
    if found is None or f"{name[: found.start()]}[0]" not in names:
        return name, 0
    return name[: found.start()], int(found[1])


def by_blocks(diagrams: Mapping[str, _T], groups: Sequence[str]) -> dict[str, list[_T]]:
    """The diagrams of a capture by group; a group of several blocks has one for each."""
    blocks: dict[str, list[_T]] = {}
    known = set(groups)
    for name, diagram in diagrams.items():
        group = name if name in known else block_of(name, diagrams)[0]
        if group in known:
            blocks.setdefault(group, []).append(diagram)
    return blocks


def bars(blocks: Sequence[Sequence[Pairs]]) -> tuple[Pairs, ...]:
    """The bars of a group's blocks, all together, per dimension; each block has some of every dimension up to its own.

    >>> bars([[np.array([[0.0, 1.0]])], [np.array([[0.0, 2.0]]), np.array([[1.0, 3.0]])]])
    (array([[0., 1.],
           [0., 2.]]), array([[1., 3.]]))
    """
    n_dims = max(map(len, blocks), default=0)
    return tuple(
        np.concatenate([block[k] for block in blocks if k < len(block)]).astype(np.float64) for k in range(n_dims)
    )


def betti_curve(pairs: Pairs, scales: Float[np.ndarray, " j"]) -> Num[np.ndarray, " j"]:
    """The number of bars with birth <= scale < death, at every scale.

    >>> betti_curve(np.array([[0.0, 1.0], [0.0, np.inf], [1.0, 2.0]]), np.array([0.5, 1.0, 2.0]))
    array([2, 2, 1])
    """
    births, deaths = np.sort(pairs[:, 0]), np.sort(pairs[:, 1])
    return np.searchsorted(births, scales, side="right") - np.searchsorted(deaths, scales, side="right")


def crocker(captures: Mapping[int, tuple[Pairs, ...]], n_scales: int) -> Crocker | None:
    """Betti numbers over the captures, by step, at common logarithmic scales; None where no bar has a length.

    The scales reach from the shortest edge that matters, at most a thousandth of the longest, to just above the
    longest at which anything changes.
    """
    values = np.concatenate([pairs.ravel() for dims in captures.values() for pairs in dims] or [np.zeros(0)])
    values = values[np.isfinite(values) & (values > 0.0)]
    if len(values) == 0:
        return None
    high = float(values.max()) * 1.1
    low = min(max(float(values.min()) * 0.9, high / 1000.0), high / 1.5)
    scales = np.geomspace(low, high, n_scales)
    n_dims = max(len(dims) for dims in captures.values())
    betti = tuple(
        _narrow(np.stack([betti_curve(dims[k] if k < len(dims) else NO_BARS, scales) for dims in captures.values()]))
        for k in range(n_dims)
    )
    return Crocker(tuple(captures), tuple(scales.tolist()), betti)


def spread(items: Sequence[int], max_items: int) -> tuple[int, ...]:
    """At most `max_items` of the items, evenly spread, the first and the last among them.

    >>> spread(range(10), 4), spread([7], 4)
    ((0, 3, 6, 9), (7,))
    """
    if len(items) <= max_items:
        return tuple(items)
    if max_items < 2:
        return tuple(items[-1:])
    last = len(items) - 1
    return tuple(items[round(i * last / (max_items - 1))] for i in range(max_items))


def _narrow(counts: Num[np.ndarray, "i j"]) -> Num[np.ndarray, "i j"]:
    """The smallest unsigned integers that hold the counts."""
    largest = int(counts.max(initial=0))
    return counts.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32)
