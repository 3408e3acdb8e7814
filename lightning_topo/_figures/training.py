"""A run as figures over optimizer steps: phases, critical ratios, loss and sharpness, changes of distances."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_topo._figures.rates import RateLimits
from lightning_topo._figures.style import (
    COLOURS,
    GREY,
    LIMIT,
    abbreviated,
    drawable,
    new_figure,
    own_style,
    plain_numbers,
)
from lightning_topo.phases import Phase

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Sequence[tuple[int, float]]
"""(step, value) in the order of steps."""
Spans = Sequence[tuple[int, Phase]]
"""(step, phase): each phase from that step on."""

# As on the report's page.
PHASE_COLOURS: Mapping[Phase, str] = {
    Phase.UNKNOWN: "#9aa3af",
    Phase.PRESERVED: "#7db8da",
    Phase.UNPROTECTED: "#f0de7c",
    Phase.EDGE_OF_STABILITY: "#ee9b2e",
    Phase.BREAKDOWN: "#8c1740",
}
_WIDTH = 7.2
_MOST_LABELLED = len(COLOURS)
_LONGEST_LABEL = 36
NETWORK = "network"
"""The row of the whole network among those of its groups."""


def phases_figure(rows: Mapping[str, Spans], events: Sequence[int], last_step: int, title: str) -> "Figure":
    """A ribbon for every row: its phase from step to step; below them a mark for the step of every event."""
    from matplotlib.patches import Patch

    with own_style():
        prefix = common_prefix([name for name in rows if name != NETWORK])
        title = f"{title} (names without \u201c{abbreviated(prefix)}\u201d)" if prefix else title
        figure, (axes,) = new_figure(1, title, width=_WIDTH, height=1.0 + 0.23 * len(rows))
        shown = [phase for phase in Phase if any(phase is p for spans in rows.values() for _, p in spans)]
        for row, spans in enumerate(rows.values()):
            ends = [*(step for step, _ in spans), last_step][1:]
            for (start, phase), end in zip(spans, ends, strict=True):
                colour = PHASE_COLOURS[phase]
                axes.barh(row, max(end - start, 0.5), 0.86, left=start, color=colour, linewidth=0)
        axes.plot(
            events, [len(rows) - 0.1] * len(events), "^", color="black", markersize=5, clip_on=False, label="event"
        )
        axes.set(ylim=(len(rows) + 0.1, -0.6), xlabel="optimizer step", xlim=(0, max(last_step, 1)))
        axes.set_yticks(range(len(rows)), [_label(name.removeprefix(prefix)) for name in rows], parse_math=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=9)
        marks = [Patch(color=PHASE_COLOURS[phase], label=phase.name.lower().replace("_", " ")) for phase in shown]
        _legend(axes, [*marks, *(axes.lines if events else ())], ncols=5)
    return figure


def ratio_figure(ratios: Mapping[str, Series], title: str) -> "Figure":
    """The critical ratio r of every group, on a logarithmic scale, with the critical point at 1.

    Of many groups the six whose r went highest have a colour and a name; the others are thin and grey. A ratio of 0
    has no place on the scale and leaves a gap.
    """
    with own_style():
        figure, (axes,) = new_figure(1, title, width=_WIDTH, height=3.9)
        highest = sorted(ratios, key=lambda group: -max(_finite(ratios[group])[1], default=0.0))[:_MOST_LABELLED]
        for group in (*(g for g in ratios if g not in highest), *highest):
            steps, values = _finite(ratios[group])
            positive = np.where(values > 0.0, values, np.nan)
            if group in highest:
                colour, name = COLOURS[highest.index(group)], _label(group)
                _line(axes, steps, positive, color=colour, linewidth=1.2, label=name)
            else:
                _line(axes, steps, positive, color="#bbbbbb", linewidth=0.7, zorder=1)
        axes.axhline(1.0, color=LIMIT, linewidth=1.2)
        axes.annotate(
            "critical point", (0.995, 1.0), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", color=LIMIT, fontsize=9,
        )  # fmt: skip
        axes.set(yscale="log", xlabel="optimizer step", ylabel=r"critical ratio $r = \eta\,/\,\eta^*$")
        axes.margins(x=0.01)
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, 2.5))
        others = len(ratios) - len(highest)
        if others:
            axes.plot([], [], color="#bbbbbb", linewidth=0.7, label=f"{others} other groups")
        _legend(axes, [line for line in axes.lines if not str(line.get_label()).startswith("_")], ncols=2)
    return figure


def stability_figure(loss: Series, edges: Mapping[str, Series], eta_lambda: Series, title: str) -> "Figure":
    """Above, the loss; below, the edge ratios by name, with the edge of stability at 1, and the paper's eta K."""
    with own_style():
        figure, (above, below) = new_figure(2, title, width=_WIDTH, height=2.5, share_x=True)
        steps, values = _finite(loss)
        _line(above, steps, values, color="black", linewidth=1.2)
        above.set(ylabel="training loss")
        if len(values) and values.min() > 0.0 and values.max() > 30.0 * values.min():
            above.set_yscale("log")
        if not len(values):
            _say(above, "no loss in this record")
        ratios = [(series, f"{name}, edge at 1", "-", COLOURS[k]) for k, (name, series) in enumerate(edges.items(), 1)]
        for series, name, style, colour in ((eta_lambda, r"$\eta\lambda$, bound at 1", ":", COLOURS[0]), *ratios):
            steps, values = _finite(series)
            if len(values):
                _line(below, steps, values, color=colour, linestyle=style, linewidth=1.6, label=name)
        if below.lines:
            below.axhline(1.0, color=GREY, linewidth=1.0)
            low, high = below.get_ylim()
            below.set_ylim(min(low, 0.0), max(high, 1.15))
            below.legend(loc="lower right", frameon=False, fontsize=9)
        else:
            _say(below, "no edge ratio in this record")
        below.set(xlabel="optimizer step", ylabel="ratio to its limit")
        below.margins(x=0.01)
    return figure


def rates_figure(limits: RateLimits, title: str) -> "Figure":
    """The learning rate that was used, and those at which a step would have met a limit, on a logarithmic scale."""
    with own_style():
        figure, (axes,) = new_figure(1, title, width=_WIDTH, height=3.6)
        for series, name, look in (
            (limits.critical, r"$\eta^*$, where r is 1", {"color": COLOURS[0]}),
            (limits.edge, "edge of stability", {"color": COLOURS[1]}),
            (limits.curvature, r"curvature bound, $\eta\lambda$ = 1", {"color": COLOURS[2], "linestyle": ":"}),
            (limits.used, "learning rate", {"color": "black", "drawstyle": "steps-post", "linewidth": 2.0}),
        ):
            steps, values = _finite(series)
            if len(values):
                _line(axes, steps, np.where(values > 0.0, values, np.nan), label=name, **look)
        axes.set(yscale="log", xlabel="optimizer step", ylabel="learning rate")
        plain_numbers(axes.yaxis, *axes.get_ylim())
        axes.margins(x=0.01)
        _legend(axes, [line for line in axes.lines if not str(line.get_label()).startswith("_")], ncols=4)
    return figure


def distortion_figure(step_map: tuple[Series, Series], total: tuple[Series, Series], title: str) -> "Figure":
    """The band from contraction to expansion of distances: above since training began, below in each measured step.

    Each pair of series is (contraction, expansion). What is 0 or infinite has no place on the scale and leaves a gap.
    """
    with own_style():
        figure, panels = new_figure(2, title, width=_WIDTH, height=2.5, share_x=True)
        for axes, (low, high), name in zip(panels, (total, step_map), ("since start", "per step"), strict=True):
            by_step = dict(low)
            both = [(step, by_step[step], value) for step, value in high if step in by_step]
            table = np.array(both, dtype=float).reshape(-1, 3)
            table[~np.isfinite(table) | (table == 0.0) & (np.arange(3) > 0)] = np.nan
            steps, least, most = table.T
            axes.fill_between(steps, least, most, color=COLOURS[0], alpha=0.2, linewidth=0)
            for values in (least, most):
                _line(axes, steps.astype(int), values, color=COLOURS[0], linewidth=1.1)
            axes.axhline(1.0, color=GREY, linewidth=1.0, linestyle=":")
            axes.set(yscale="log", ylabel=f"factor {name}")
            plain_numbers(axes.yaxis, *axes.get_ylim())
            axes.margins(x=0.01)
        panels[-1].set(xlabel="optimizer step")
    return figure


def _legend(axes: "Axes", handles: Sequence["Artist"], ncols: int) -> None:
    """Above the chart, where it covers nothing."""
    look = {"frameon": False, "fontsize": 9, "borderaxespad": 0.2, "handlelength": 1.4, "columnspacing": 1.4}
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=ncols, **look)


def common_prefix(names: Sequence[str]) -> str:
    """The common beginning of three or more names, up to a dot or slash.

    >>> common_prefix(["net.layers.0", "net.layers.1", "net.layers.10"])
    'net.layers.'
    """
    if len(names) < 3:
        return ""
    common = os.path.commonprefix(list(names))  # noqa: RUF071 - of letters, and it is cut back below
    return common[: max(common.rfind("."), common.rfind("/")) + 1]


def _label(name: str) -> str:
    """A group's name beside its row or line; a dollar sign would begin a formula."""
    return drawable(abbreviated(name, _LONGEST_LABEL)).replace("$", r"\$")


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, NaN for what is not finite."""
    values = np.array([value for _, value in series], dtype=float)
    return np.array([step for step, _ in series], dtype=int), np.where(np.isfinite(values), values, np.nan)


def _line(axes: "Axes", steps: np.ndarray, values: np.ndarray, **look: object) -> None:
    """A line; with marks where there are too few points for one."""
    axes.plot(steps, values, marker="o" if len(steps) < 3 else None, markersize=4, **look)  # pyright: ignore[reportArgumentType]


def _say(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_yticks([])
