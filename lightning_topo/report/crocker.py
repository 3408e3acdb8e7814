"""Persistence diagrams of one group through a run: Betti numbers over scale and step, and the bars to look at.

A CROCKER plot (contour realization of computed k-dimensional hole evolution in the Rips complex) shows the Betti
number b_k of the Rips complex at every scale and time. Source: Topaz, Ziegelmeier, Halverson, PLoS ONE 10(5), 2015.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num, UInt

from lightning_topo.homology import PersistenceDiagram

_CELLS = 500
"""A diagram is drawn on about as many pixels."""
_QUANTA = 65_000
_NEVER = 65_535

Pairs = Float[np.ndarray, "_ 2"]
"""(birth, death) of each bar."""
_NO_BARS = np.zeros((0, 2))


@dataclass(frozen=True, slots=True)
class Crocker:
    """`betti[k][i, j]` is b_k at the capture of `steps[i]` and at the scale `scales[j]`."""

    steps: tuple[int, ...]
    scales: tuple[float, ...]
    betti: tuple[Num[np.ndarray, "i j"], ...]


@dataclass(frozen=True, slots=True)
class DiagramMarks:
    """The bars of one dimension as marks, capture after capture: those of capture i lie at `offsets[i]:offsets[i + 1]`.

    Births and deaths are integers that times `DiagramSlides.unit` are distances; a death of 65535 is infinite.
    `births` is None where all are 0. `n_bars` counts the bars of each capture, `deaths` only those to be seen.
    """

    offsets: tuple[int, ...]
    births: UInt[np.ndarray, " m"] | None
    deaths: UInt[np.ndarray, " m"]
    n_bars: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DiagramSlides:
    """The diagrams to page through, captured at `steps`: `marks[k]` holds dimension k.

    `merged` says that bars of one pixel share a mark.
    """

    steps: tuple[int, ...]
    unit: float
    marks: tuple[DiagramMarks, ...]
    merged: bool

    @property
    def n_numbers(self) -> int:
        """How many births and deaths the marks take on the page."""
        return sum(m.deaths.size + (0 if m.births is None else m.births.size) for m in self.marks)


def bars(diagrams: Sequence[PersistenceDiagram]) -> tuple[Pairs, ...]:
    """The bars of the diagrams of a group's blocks, all together, per dimension."""
    joined = []
    for k in range(max((diagram.max_dim for diagram in diagrams), default=-1) + 1):
        present = [diagram[k] for diagram in diagrams if k <= diagram.max_dim]
        pairs = [np.stack([b.births.double().numpy(), b.deaths.double().numpy()], axis=1) for b in present]
        joined.append(np.concatenate(pairs))
    return tuple(joined)


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
        _narrow(np.stack([betti_curve(dims[k] if k < len(dims) else _NO_BARS, scales) for dims in captures.values()]))
        for k in range(n_dims)
    )
    return Crocker(tuple(captures), tuple(scales.tolist()), betti)


def slides(captures: Mapping[int, tuple[Pairs, ...]], merge_pixels: bool = False) -> DiagramSlides | None:
    """The diagrams as marks on common axes, exact to 1/65000 of them; None where there is no diagram.

    With `merge_pixels` one bar stands for all those that a person could not tell apart.
    """
    finite = [pairs[np.isfinite(pairs)] for dims in captures.values() for pairs in dims]
    if not finite:
        return None
    top = max((float(values.max()) for values in finite if len(values)), default=0.0)
    unit = top / _QUANTA if top > 0.0 else 1.0 / _QUANTA
    n_dims = max(len(dims) for dims in captures.values())
    per_dim = [[dims[k] if k < len(dims) else _NO_BARS for dims in captures.values()] for k in range(n_dims)]
    marks = tuple(_marks(found, unit, merge_pixels) for found in per_dim)
    return DiagramSlides(tuple(captures), unit, marks, merge_pixels)


def _marks(captures: Sequence[Pairs], unit: float, merge_pixels: bool) -> DiagramMarks:
    seen = [_whole(pairs, unit) for pairs in captures]
    if merge_pixels:
        seen = [_visible(pairs) for pairs in seen]
    whole = np.concatenate(seen)
    offsets = np.cumsum([0, *map(len, seen)])
    births = whole[:, 0] if whole[:, 0].any() else None
    return DiagramMarks(tuple(offsets.tolist()), births, whole[:, 1], tuple(map(len, captures)))


def _whole(pairs: Pairs, unit: float) -> UInt[np.ndarray, "_ 2"]:
    return np.where(np.isinf(pairs), _NEVER, np.rint(np.nan_to_num(pairs, posinf=0.0) / unit)).astype(np.uint16)


def _visible(pairs: UInt[np.ndarray, "_ 2"]) -> UInt[np.ndarray, "_ 2"]:
    """The first bar of every pixel that has one."""
    _, first = np.unique(pairs // (_QUANTA // _CELLS), axis=0, return_index=True)
    return pairs[np.sort(first)]


def _narrow(counts: Num[np.ndarray, "i j"]) -> Num[np.ndarray, "i j"]:
    """The smallest unsigned integers that hold the counts."""
    largest = int(counts.max(initial=0))
    return counts.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32)
