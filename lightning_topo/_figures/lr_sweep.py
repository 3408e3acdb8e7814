"""A sweep of the learning rate as a matplotlib figure; no pyplot, no global state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_topo._figures.style import COLOURS, GREY, new_figure, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = ("-", "--", "-", ":")


class Curve(NamedTuple):
    """One quantity that is critical at 1; NaN leaves a gap."""

    label: str
    values: Sequence[float]


class Mark(NamedTuple):
    """A learning rate to point out."""

    label: str
    lr: float


def lr_figure(
    lrs: Sequence[float], losses: Sequence[float], curves: Sequence[Curve], marks: Sequence[Mark]
) -> "Figure":
    """Above the loss, below what is critical at 1, both over the learning rate on a logarithmic axis."""
    with own_style():
        figure, (above, below) = new_figure(2, "Sweep of the learning rate")
        above.plot(lrs, _drawable(losses), color=COLOURS[0], linewidth=1.6)
        above.set(xscale="log", yscale="log" if min(losses) > 0.0 else "linear", ylabel="loss")
        lowest = float("inf")
        for k, curve in enumerate(curves):
            values = _drawable(curve.values)
            if np.isnan(values).all():
                continue
            positive = values[values > 0.0]
            lowest = min(lowest, float(positive.min()) if len(positive) else lowest)
            look: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "linestyle": _STYLES[k % len(_STYLES)]}
            below.plot(lrs, values, linewidth=1.6, label=curve.label, **look)
        below.axhline(1.0, color=GREY, linewidth=0.8)
        below.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="critical at 1")
        if lowest < 1.0:
            below.set_ylim(bottom=max(lowest, 1e-6) / 100)  # room for the legend
        for axes in (above, below):
            _point_out(axes, marks, labelled=axes is above)
        below.legend(frameon=True, framealpha=1.0, edgecolor="white", fancybox=False, fontsize=9, loc="lower right")
    return figure


def _drawable(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    return np.where(np.isfinite(found), found, np.nan)


def _point_out(axes: "Axes", marks: Sequence[Mark], *, labelled: bool) -> None:
    for k, mark in enumerate(sorted(marks, key=lambda mark: mark.lr)):
        axes.axvline(mark.lr, color="black", linewidth=1.0, linestyle=(0, (4, 3)))
        if labelled:
            place: dict[str, Any] = {
                "xycoords": ("data", "axes fraction"),
                "textcoords": "offset points",
                "va": "top",
                "fontsize": 9,
            }
            axes.annotate(mark.label, (mark.lr, 0.98 - 0.12 * k), xytext=(-4, 0), ha="right", **place)
