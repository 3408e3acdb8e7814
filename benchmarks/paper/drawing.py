"""One look for all figures: the report's colours, safe for colour-blind readers, and text that stays readable."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from lightning_topo import Phase

WIDTH = 7.6
"""Inches: a page's column, at 150 pixels each."""

INK, MUTED, GRID = "#1c2430", "#566173", "#dfe3e9"
# The colours of the report's phases.
PHASE_COLOURS = {
    Phase.UNKNOWN: "#9aa3af",
    Phase.PRESERVED: "#7db8da",
    Phase.UNPROTECTED: "#f0de7c",
    Phase.EDGE_OF_STABILITY: "#ee9b2e",
    Phase.BREAKDOWN: "#8c1740",
}
PHASE_NAMES = {phase: phase.name.replace("_", " ").capitalize() for phase in Phase}
# Quantities: each has one colour on every figure.
R, ETA_LAMBDA, SHARPNESS, SWAP, DISTANCE, LOSS = "#8c1740", "#c2560c", "#0b63a5", "#3c7a55", "#6a4c93", "#566173"
SERIES = ("#0b63a5", "#c2560c", "#3c7a55", "#6a4c93", "#8c1740", "#9a7b00")

STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "figure.dpi": 150.0,
    "savefig.dpi": 150.0,
    "figure.facecolor": "white",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}
mpl.rcParams.update(STYLE)

# r below and above its critical point never share a colour; white is at 1.
CRITICAL = LinearSegmentedColormap.from_list(
    "critical",
    ["#08305f", "#1f6cab", "#6eb0d8", "#c3dff0", "#ffffff", "#f8b25c", "#dd6a13", "#8a3400", "#4d1a00"],
)


def critical_norm(decades: float) -> LogNorm:
    """Of a map of r: as many decades below 1 as above it, so that white is at 1."""
    return LogNorm(10.0**-decades, 10.0**decades)


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of the page's width."""
    made = Figure(figsize=(width, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.05, h_pad=0.05)  # pyright: ignore[reportOptionalMemberAccess]
    return made


def critical_line(axes: Axes, label: str = "", y: float = 1.0) -> None:
    """The line at which r, or whatever is drawn, is critical."""
    axes.axhline(y, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    if label:
        axes.annotate(
            label, (1.0, y), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
            ha="right", va="bottom", fontsize=7.5, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip


def log_axis(axes: Axes, low: float | None = None, high: float | None = None) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def log_steps(axes: Axes) -> None:
    """A logarithmic axis of steps, in whole numbers: what happens first gets room."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


HALO = [Stroke(linewidth=3.0, foreground="white"), Normal()]
"""Around lines that run over dark colours."""


def phase_ribbon(axes: Axes, phases: Sequence[tuple[int, Phase]], last: int) -> None:
    """The phase at every step, as a band of colours."""
    codes = np.full(last + 1, int(Phase.UNKNOWN))
    for step, phase in phases:
        codes[step:] = int(phase)
    axes.imshow(
        codes[None], cmap=PHASE_CMAP, norm=PHASE_NORM, aspect="auto", interpolation="nearest",
        extent=(0, last, 0, 1),
    )  # fmt: skip
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)


PHASE_CMAP = ListedColormap([PHASE_COLOURS[Phase(code)] for code in range(-1, 4)])
PHASE_NORM = BoundaryNorm(np.arange(-1.5, 4.0), PHASE_CMAP.N)


def phase_handles(phases: Sequence[Phase]) -> list[Any]:
    """Patches for a legend."""
    return [Patch(color=PHASE_COLOURS[phase], label=PHASE_NAMES[phase]) for phase in phases]


def band(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str | None = None, **more: Any) -> None:
    """The median of several seeds (a row each) with everything between the smallest and the largest."""
    axes.plot(steps, np.median(values, axis=0), color=colour, label=label, **more)
    axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
