"""How the shape of a group changes: every capture against every other, and entropy against the critical ratio."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lightning_topo._figures.style import COLOURS, new_figure, own_style
from lightning_topo.homology import PersistenceDiagram, log_bottleneck

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = Sequence[tuple[int, float]]
"""(step, value) in the order of steps."""


def capture_distances(captures: Sequence[Sequence[PersistenceDiagram]], k: int) -> Float[np.ndarray, "m m"]:
    """The log-bottleneck distance in dimension k between each two captures, the worst block's.

    NaN where a capture has no dimension k, or other blocks.
    """
    m = len(captures)
    found = np.zeros((m, m))
    for i in range(m):
        for j in range(i + 1, m):
            pairs = list(zip(captures[i], captures[j], strict=False))
            known = len(captures[i]) == len(captures[j]) and all(k <= min(a.max_dim, b.max_dim) for a, b in pairs)
            distance = max((log_bottleneck(a, b, k) for a, b in pairs), default=np.nan) if known else np.nan
            found[i, j] = found[j, i] = distance
    return found


def distances_figure(steps: Sequence[int], distances: Sequence[Float[np.ndarray, "m m"]], title: str) -> "Figure":
    """A heat map for each dimension: dark where two captures have much the same shape.

    Blocks along the diagonal are times of rest; where one ends, the shape has changed for good. What is infinite has no
    colour.
    """
    with own_style():
        figure, panels = new_figure(len(distances), title, height=3.9)
        places = np.arange(len(steps))
        shown = places[:: max(1, -(-len(steps) // 8))]
        for k, (axes, matrix) in enumerate(zip(panels, distances, strict=True)):
            mesh = axes.pcolormesh(places, places, np.ma.masked_invalid(matrix), cmap="viridis", vmin=0.0)
            figure.colorbar(mesh, ax=axes, label=f"log-bottleneck distance of $H_{k}$")
            labels = [f"{steps[i]:,}" for i in shown]
            axes.set_xticks(shown, labels, rotation=45)
            axes.set_yticks(shown, labels)
            axes.set(xlabel="step", ylabel="step", aspect="equal")
    return figure


def peaks_before(ratios: Series, steps: Sequence[int]) -> list[float]:
    """The largest ratio since the step before, for each of the steps; NaN where none was measured.

    >>> peaks_before([(1, 0.5), (2, 0.1), (5, 0.3)], [2, 4, 6])
    [0.5, nan, 0.3]
    """
    edges = [-1, *steps]
    return [
        max((value for at, value in ratios if low < at <= high), default=np.nan)
        for low, high in zip(edges, steps, strict=False)
    ]


def entropy_figure(ratios: Series, entropies: Mapping[int, Series], title: str) -> "Figure":
    """Persistence entropy of each dimension against the largest r since the capture before; a mark for each capture.

    Larger marks are later ones. A ratio of 0 has no place on the scale.
    """
    with own_style():
        figure, (axes,) = new_figure(1, title)
        for k, series in entropies.items():
            steps = [step for step, _ in series]
            peaks = np.array(peaks_before(ratios, steps))
            sizes = np.linspace(8.0, 48.0, len(steps)) if len(steps) > 1 else [28.0]
            peaks[peaks <= 0.0] = np.nan
            values = [value for _, value in series]
            axes.scatter(peaks, values, s=sizes, alpha=0.7, linewidths=0, color=COLOURS[k % 4], label=f"$H_{k}$")
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="largest critical ratio since the capture before", ylabel="persistence entropy")
        axes.legend(frameon=False)
    return figure
