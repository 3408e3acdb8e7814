"""A group's persistence as figures: its diagram at one capture, its Betti curves and CROCKER plot over many."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_topo._figures.captures import Crocker, Pairs, crocker, spread
from lightning_topo._figures.style import COLOURS, GREY, LIMIT, look_of_ticks, new_figure, own_style, plain_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ("o", "^", "s", "D")
_N_CURVES = 5
_N_SCALES = 80


def diagram_figure(
    pairs: tuple[Pairs, ...], title: str, landmark_error: float = 0.0, is_vacuous: bool = False
) -> "Figure":
    """A persistence diagram: death over birth of every bar; those that never die lie on the dashed line at the top.

    `landmark_error` is 2 rho / diameter, where dimensions 1 and up are of landmarks; `is_vacuous` says that they may
    have no bar at all.
    """
    finite = [values[np.isfinite(values)] for values in pairs]
    top = max((float(values.max()) for values in finite if len(values)), default=0.0) or 1.0
    never = 1.08 * top
    with own_style():
        figure, (axes,) = new_figure(1, title, height=3.9)
        axes.plot([0.0, never], [0.0, never], color=GREY, linewidth=0.8)
        axes.axhline(never, color=GREY, linewidth=0.8, linestyle="--")
        axes.text(never, never, "\u221e", color=GREY, ha="right", va="bottom")
        for k, bars in enumerate(pairs):
            deaths = np.where(np.isinf(bars[:, 1]), never, bars[:, 1])
            look: dict[str, Any] = {"color": COLOURS[k % 4], "marker": _MARKERS[k % 4]}
            label = f"$H_{k}$: {len(bars):,} {'bar' if len(bars) == 1 else 'bars'}"
            axes.scatter(bars[:, 0], deaths, s=22, alpha=0.6, linewidths=0, label=label, clip_on=False, **look)
        axes.set(xlabel="birth (distance)", ylabel="death (distance)")
        axes.set(xlim=(-0.03 * top, 1.04 * never), ylim=(-0.03 * top, 1.1 * never))
        axes.legend(loc="lower right", frameon=False)
        if landmark_error:
            nothing = ": this says nothing of them" if is_vacuous else ""
            words = f"loops from landmarks, 2\u03c1 / diameter = {landmark_error:.2g}{nothing}"
            axes.text(0.0, 1.01, words, transform=axes.transAxes, color=LIMIT if is_vacuous else GREY, fontsize=8)
    return figure


def betti_figure(captures: Mapping[int, tuple[Pairs, ...]], title: str) -> "Figure | None":
    """Betti curves: b_k over scale, at a few captures from the first (light) to the last (dark); None without bars."""
    found = crocker({step: captures[step] for step in spread(tuple(captures), _N_CURVES)}, _N_SCALES)
    if found is None:
        return None
    from matplotlib import colormaps

    with own_style():
        figure, panels = new_figure(len(found.betti), title)
        darkness = np.linspace(0.25, 1.0, len(found.steps)) if len(found.steps) > 1 else [1.0]
        for k, (axes, betti) in enumerate(zip(panels, found.betti, strict=True)):
            for step, curve, dark in zip(found.steps, betti, darkness, strict=True):
                axes.step(
                    found.scales, curve, where="post", color=colormaps["Blues"](dark), linewidth=1.6, label=_step(step)
                )
            axes.set(xscale="log", xlabel="scale (distance)", ylabel=f"Betti number $b_{k}$")
            plain_numbers(axes.xaxis, found.scales[0], found.scales[-1])
            axes.set_ylim(0.0, max(1.0, float(betti.max())) * 1.08)
        panels[0].legend(frameon=False)
    return figure


def crocker_figure(found: Crocker, title: str) -> "Figure":
    """A CROCKER plot: b_k as colour over step and scale; white where it is 0.

    Source: Topaz, Ziegelmeier, Halverson, PLoS ONE 10(5), 2015.
    """
    from matplotlib.colors import BoundaryNorm, LogNorm

    with own_style():
        figure, panels = new_figure(len(found.betti), title)
        for k, (axes, betti) in enumerate(zip(panels, found.betti, strict=True)):
            largest = max(int(betti.max()), 1)
            few = np.arange(largest + 1) + 0.5
            norm = LogNorm(1, largest) if largest >= 10 else BoundaryNorm(few, 256)
            shown = np.ma.masked_equal(betti.T.astype(float), 0.0)
            edges = _edges(found.steps)
            mesh = axes.pcolormesh(edges, _log_edges(found.scales), shown, norm=norm, cmap="viridis_r")
            marks = range(1, largest + 1) if largest < 10 else _round_numbers(largest)
            bar = figure.colorbar(mesh, ax=axes, label=f"Betti number $b_{k}$")
            bar.set_ticks(list(marks), labels=[f"{n:,}" for n in marks])
            bar.ax.minorticks_off()
            look_of_ticks(bar.ax)
            axes.set(yscale="log", xlabel="step", ylabel="scale (distance)")
            plain_numbers(axes.yaxis, found.scales[0], found.scales[-1])
    return figure


def _step(step: int) -> str:
    return f"step {step:,}"


def _round_numbers(largest: int) -> list[int]:
    """1, 2, 5, 10, ... up to `largest`."""
    powers = [10**k for k in range(len(str(largest)))]
    return [m * power for power in powers for m in (1, 2, 5) if m * power <= largest]


def _edges(centres: tuple[int, ...]) -> np.ndarray:
    """The borders of the captures' columns: midway between them."""
    at = np.asarray(centres, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[at[0]], middle, [at[-1]]])


def _log_edges(scales: tuple[float, ...]) -> np.ndarray:
    """The same for scales, on a logarithmic axis."""
    at = np.log(np.asarray(scales))
    half = (at[1] - at[0]) / 2
    return np.exp(np.concatenate([at - half, [at[-1] + half]]))
