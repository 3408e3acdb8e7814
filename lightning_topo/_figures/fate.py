"""What becomes of a group's neurons, as a figure over steps: how many are alive, independent, merged."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lightning_topo._figures.style import COLOURS, GREY, new_figure, own_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = Mapping[str, float]
"""The values of one measurement of the probe `Fate`."""

_LINES = (
    ("alive", COLOURS[2], "-"),
    ("independent", COLOURS[0], "-"),
    ("directions of incoming weights", COLOURS[1], "--"),
    ("in the largest set of equal ones", COLOURS[3], ":"),
)
_WIDTH = 7.2


def fate_lines(captures: Mapping[int, Counts]) -> dict[str, list[tuple[int, float]]]:
    """(step, count) of each line, where it was measured: alive are those that do not vanish.

    >>> fate_lines({7: {"measured_neurons": 9.0, "vanishing_neurons": 2.0, "largest_multiplicity": 1.0}})
    {'alive': [(7, 7.0)], 'in the largest set of equal ones': [(7, 1.0)]}
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in captures.items():
        n, vanishing = values.get("measured_neurons"), values.get("vanishing_neurons")
        alive = None if n is None or vanishing is None else n - vanishing
        others = (values.get(name) for name in ("independent_neurons", "aligned_clusters", "largest_multiplicity"))
        for (name, _, _), count in zip(_LINES, (alive, *others), strict=True):
            if count is not None and np.isfinite(count):
                found.setdefault(name, []).append((step, count))
    return found


def class_sizes(captures: Mapping[int, Counts]) -> dict[int, list[tuple[int, float]]]:
    """(step, size) of the k-th largest set of equal neurons, by k; of the first, `fate_lines` has the size.

    >>> class_sizes({7: {"multiplicity_1": 5.0, "multiplicity_2": 3.0}, 9: {"multiplicity_1": 6.0}, 11: {}})
    {2: [(7, 3.0)]}
    """
    found: dict[int, list[tuple[int, float]]] = {}
    for step, values in captures.items():
        k = 2
        while (size := values.get(f"multiplicity_{k}")) is not None:
            found.setdefault(k, []).append((step, size))
            k += 1
    return found


def fate_figure(captures: Mapping[int, Counts], title: str) -> "Figure":
    """The counts over steps, below the number of all neurons; dots are the sizes of further sets of equal ones."""
    with own_style():
        figure, (axes,) = new_figure(1, title, width=_WIDTH)
        lines = fate_lines(captures)
        for name, colour, style in _LINES:
            if points := lines.get(name):
                steps, counts = zip(*points, strict=True)
                mark = "o" if len(steps) < 3 else None
                axes.plot(steps, counts, color=colour, linestyle=style, marker=mark, markersize=4, label=name)
        for points in class_sizes(captures).values():  # sets come and go: points, without a line between them
            axes.plot(*zip(*points, strict=True), color=_LINES[-1][1], linestyle="", marker=".", markersize=3)
        most = max((values.get("measured_neurons", 0.0) for values in captures.values()), default=0.0)
        axes.axhline(most, color=GREY, linewidth=0.8)
        axes.annotate(
            f"all {most:,.0f}", (0.995, most), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", color=GREY, fontsize=9,
        )  # fmt: skip
        axes.set(xlabel="optimizer step", ylabel="neurons", ylim=(0.0, 1.15 * max(most, 1.0)))
        axes.margins(x=0.01)
        if lines:
            axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return figure
