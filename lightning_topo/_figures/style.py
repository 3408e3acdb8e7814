"""The common style of all figures: colours, titles, panels one below the other, whatever style is in use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#666666"
LIMIT = "#B3123F"
"""The colour of a line that should not be crossed."""
_UNSHOWABLE = "\u25a1"


def new_figure(
    n_panels: int, title: str, *, width: float = 5.0, height: float = 3.0, share_x: bool = False
) -> "tuple[Figure, list[Axes]]":
    """A figure of panels one below the other (trackers show images in narrow columns), and the panels."""
    from lightning_topo._figures.inline import InlineFigure

    figure = InlineFigure(figsize=(width, height * n_panels + 0.3), dpi=110, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.08)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    figure.suptitle(drawable(title), fontsize=11, parse_math=False)
    panels = list(figure.subplots(n_panels, 1, squeeze=False, sharex=share_x)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        look_of_ticks(axes)
    return figure, panels


def pixels(figure: "Figure") -> UInt8[np.ndarray, "height width 4"]:
    """The figure as an image, red, green, blue and opacity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


@contextmanager
def own_style() -> Iterator[None]:
    """The same figure whatever style the user has chosen for others."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"{error}: pip install matplotlib") from error
    parts = ("axes", "figure", "font", "grid", "legend", "lines", "mathtext", "scatter", "text", "xtick", "ytick")
    defaults: Any = {name: v for name, v in matplotlib.rcParamsDefault.items() if name.split(".")[0] in parts}
    with matplotlib.rc_context(defaults):
        yield


def abbreviated(name: str, most: int = 28) -> str:
    """A name where it is short enough, else its two ends.

    >>> abbreviated("transformer.layers.11.attention.heads", most=20)
    'transfo…ention.heads'
    """
    left = (most - 1) * 2 // 5
    return name if len(name) <= most else f"{name[:left]}\u2026{name[left + 1 - most :]}"


def drawable(words: str) -> str:
    """Words with a box in the place of every character that matplotlib's font does not have."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else _UNSHOWABLE for c in words)


def look_of_ticks(axes: "Axes") -> None:
    """Ticks are made only when they are drawn, perhaps under another style."""
    axes.tick_params(which="both", labelsize=10, color="black", labelcolor="black", width=0.8)


def plain_numbers(axis: "Axis", low: float, high: float) -> None:
    """On a logarithmic axis of less than two decades, powers of ten are no help."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if high < 100.0 * low:
        axis.set_major_locator(
            MaxNLocator(6, steps=(1, 2, 5, 10)) if high < 10.0 * low else LogLocator(subs=(1.0, 2.0, 5.0))
        )
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
