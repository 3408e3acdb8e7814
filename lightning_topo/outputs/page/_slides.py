"""The persistence diagrams of one group as marks for the page: the bars to look at, capture by capture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt

from lightning_topo._figures.captures import NO_BARS, Pairs

_CELLS = 500
"""A diagram is drawn on about as many pixels."""
_QUANTA = 65_000
_NEVER = 65_535


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
    per_dim = [[dims[k] if k < len(dims) else NO_BARS for dims in captures.values()] for k in range(n_dims)]
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
