"""A group's persistence as matplotlib figures, for experiment trackers and notebooks; no pyplot, no global state.

matplotlib is the extra `plot`: `pip install "lightning-topo[plot]"`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from lightning_topo.report.crocker import Crocker, Pairs, crocker
from lightning_topo.report.thinning import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "^", "s", "D")
GREY = "#666666"
_N_CURVES = 5
_N_SCALES = 80


def diagram_figure(pairs: tuple[Pairs, ...], title: str) -> "Figure":
    """A persistence diagram: death over birth of every bar; those that never die lie on the dashed line at the top."""
    finite = [values[np.isfinite(values)] for values in pairs]
    top = max((float(values.max()) for values in finite if len(values)), default=0.0) or 1.0
    never = 1.08 * top
    with own_style():
        figure, (axes,) = panels_below(1, title)
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
    return figure


def betti_figure(captures: Mapping[int, tuple[Pairs, ...]], title: str) -> "Figure | None":
    """Betti curves: b_k over scale, at a few captures from the first (light) to the last (dark); None without bars."""
    found = crocker({step: captures[step] for step in spread(tuple(captures), _N_CURVES)}, _N_SCALES)
    if found is None:
        return None
    from matplotlib import colormaps

    with own_style():
        figure, panels = panels_below(len(found.betti), title)
        darkness = np.linspace(0.25, 1.0, len(found.steps)) if len(found.steps) > 1 else [1.0]
        for k, (axes, betti) in enumerate(zip(panels, found.betti, strict=True)):
            for step, curve, dark in zip(found.steps, betti, darkness, strict=True):
                axes.step(
                    found.scales, curve, where="post", color=colormaps["Blues"](dark), linewidth=1.6, label=_step(step)
                )
            axes.set(xscale="log", xlabel="scale (distance)", ylabel=f"Betti number $b_{k}$")
            _plain_numbers(axes.xaxis, found.scales)
            axes.set_ylim(0.0, max(1.0, float(betti.max())) * 1.08)
        panels[0].legend(frameon=False)
    return figure


def crocker_figure(found: Crocker, title: str) -> "Figure":
    """A CROCKER plot: b_k as colour over step and scale; white where it is 0.

    Source: Topaz, Ziegelmeier, Halverson, PLoS ONE 10(5), 2015.
    """
    from matplotlib.colors import LogNorm, Normalize

    with own_style():
        figure, panels = panels_below(len(found.betti), title)
        for k, (axes, betti) in enumerate(zip(panels, found.betti, strict=True)):
            largest = max(int(betti.max()), 1)
            norm = LogNorm(1, largest) if largest >= 10 else Normalize(0, largest)
            shown = np.ma.masked_equal(betti.T.astype(float), 0.0)
            edges = _edges(found.steps)
            mesh = axes.pcolormesh(edges, _log_edges(found.scales), shown, norm=norm, cmap="viridis_r")
            marks = range(largest + 1) if largest < 10 else _round_numbers(largest)
            bar = figure.colorbar(mesh, ax=axes, label=f"Betti number $b_{k}$")
            bar.set_ticks(list(marks), labels=[f"{n:,}" for n in marks])
            bar.ax.minorticks_off()
            _look_of_ticks(bar.ax)
            axes.set(yscale="log", xlabel="step", ylabel="scale (distance)")
            _plain_numbers(axes.yaxis, found.scales)
    return figure


def pixels(figure: "Figure") -> UInt8[np.ndarray, "height width 4"]:
    """The figure as an image, red, green, blue and opacity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def panels_below(n_panels: int, title: str) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    # One below the other: trackers show images in narrow columns.
    size = (5.0, 4.2 if n_panels == 1 else 3.0 * n_panels + 0.3)
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.08)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    figure.suptitle(title if len(title) <= 60 else f"{title[:29]} \u2026 {title[-29:]}", fontsize=11)
    panels = list(figure.subplots(n_panels, 1, squeeze=False)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        _look_of_ticks(axes)
    return figure, panels


@contextmanager
def own_style() -> Iterator[None]:
    """The same figure whatever style the user has chosen for others."""
    import matplotlib

    parts = ("axes", "figure", "font", "grid", "legend", "lines", "mathtext", "scatter", "text", "xtick", "ytick")
    defaults: Any = {name: v for name, v in matplotlib.rcParamsDefault.items() if name.split(".")[0] in parts}
    with matplotlib.rc_context(defaults):
        yield


def _step(step: int) -> str:
    return f"step {step:,}"


def _look_of_ticks(axes: "Axes") -> None:
    """Ticks are made only when they are drawn, perhaps under another style."""
    axes.tick_params(which="both", labelsize=10, color="black", labelcolor="black", width=0.8)


def _plain_numbers(axis: "Axis", scales: tuple[float, ...]) -> None:
    """On a logarithmic axis of less than a decade, powers of ten are no help."""
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    if scales[-1] < 10.0 * scales[0]:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())


def _round_numbers(largest: int) -> list[int]:
    """1, 2, 5, 10, ... up to `largest`."""
    powers = [10**k for k in range(len(str(largest)))]
    return [m * power for power in powers for m in (1, 2, 5) if m * power <= largest]


def _edges(centres: tuple[int, ...]) -> np.ndarray:
    """Where the columns of the captures meet: midway."""
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
