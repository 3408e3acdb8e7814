"""The pictures of docs/concepts.md: a step, a persistence diagram, the edge of stability.

python -m examples.concepts --out docs/concepts
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_topo import persistence, step_distortion

BLUE, RED, GREY = "#0072B2", "#B3123F", "0.6"


def canvas(n: int, height: float = 2.7) -> Any:
    """A figure of n charts side by side, and the charts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.7 * n, height), dpi=90, layout="constrained")
    charts = figure.subplots(1, n, squeeze=False)[0]
    for chart in charts:
        chart.spines[["top", "right"]].set_visible(False)
        chart.tick_params(labelsize=7)
    return figure, charts


def neurons() -> Tensor:
    """Seven neurons with two weights each."""
    return torch.tensor([[0.0, 0.0], [1.0, 0.2], [2.1, 0.0], [0.4, 1.1], [1.5, 1.2], [2.4, 1.4], [1.1, 2.1]])


def direction() -> Tensor:
    """The update of each for a learning rate of 1: towards a point between them."""
    return 0.45 * (torch.tensor([[1.2, 0.9]]) - neurons()) * torch.tensor([[1.0, 0.6]])


def step() -> Any:
    """The same update at three learning rates: below the critical one, at it, and above."""
    figure, charts = canvas(3)
    before = neurons()
    critical = 1.0 / step_distortion(before, before + direction()).critical_ratio
    for chart, multiple in zip(charts, (0.4, 1.0, 2.0), strict=True):
        after = before + multiple * critical * direction()
        found = step_distortion(before, after)
        pairs = zip(before.tolist(), after.tolist(), strict=True)
        for (x, y), (x_after, y_after) in pairs:
            chart.annotate("", (x_after, y_after), (x, y), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 0.8})
        chart.plot(*before.T, "o", color=GREY, markersize=4)
        chart.plot(*after.T, "o", color=BLUE if multiple < 1.0 else RED, markersize=5)
        chart.set_title(f"r = {found.critical_ratio:.1f}, closest pair x {found.contraction:.2f}", fontsize=8)
        chart.set(xlim=(-0.4, 2.8), ylim=(-0.4, 2.5), xlabel="weight 1")
        chart.xaxis.label.set_fontsize(8)
    charts[0].set_ylabel("weight 2", fontsize=8)
    return figure


def ring() -> Tensor:
    """Fourteen points near a circle."""
    angle = 2 * math.pi * torch.arange(14) / 14
    noise = 0.06 * torch.randn(14, 2, generator=torch.Generator().manual_seed(1))
    return torch.stack([angle.cos(), angle.sin()], dim=1) + noise


def bars() -> Any:
    """Balls around the points of a ring at three scales, and the bars that count clusters and loops."""
    from matplotlib.patches import Circle

    figure, charts = canvas(4)
    points = ring()
    for chart, scale in zip(charts[:3], (0.25, 0.6, 1.9), strict=True):
        for x, y in points.tolist():
            chart.add_patch(Circle((x, y), scale / 2, color=BLUE, alpha=0.25, linewidth=0))
        chart.plot(*points.T, "o", color="black", markersize=3)
        chart.set(xlim=(-2.0, 2.0), ylim=(-2.0, 2.0), aspect="equal")
        chart.set_title(f"scale {scale}", fontsize=8)
        chart.set_axis_off()
    diagram = persistence(points)
    height = 0
    for dimension, colour in ((0, BLUE), (1, RED)):
        found = zip(diagram[dimension].births.tolist(), diagram[dimension].deaths.tolist(), strict=True)
        for birth, death in sorted(found, key=lambda bar: bar[1]):
            charts[3].plot([birth, min(death, 2.2)], [height, height], color=colour, linewidth=1.6)
            height += 1
    for scale in (0.25, 0.6, 1.9):
        charts[3].axvline(scale, color=GREY, linewidth=0.8, linestyle=":")
    charts[3].set_title("clusters (blue), loops (red)", fontsize=8)
    charts[3].set(xlabel="scale", yticks=[])
    charts[3].xaxis.label.set_fontsize(8)
    return figure


def edge() -> Any:
    """Gradient descent on a parabola of curvature 1, below, at and above the largest stable learning rate."""
    figure, charts = canvas(3)
    grid = torch.linspace(-2.2, 2.2, 100)
    for chart, lr in zip(charts, (0.6, 2.0, 2.15), strict=True):
        path = [1.0]
        for _ in range(7):
            path.append((1.0 - lr) * path[-1])
        w = torch.tensor(path)
        chart.plot(grid, grid**2 / 2, color=GREY, linewidth=1.0)
        chart.plot(w, w**2 / 2, "o-", color=BLUE if lr < 2.0 else RED, markersize=4, linewidth=0.8)
        chart.set_title(f"sharpness ratio {lr / 2:.3g}", fontsize=8)
        chart.set(xlabel="weight", yticks=[])
        chart.xaxis.label.set_fontsize(8)
    charts[0].set_ylabel("loss", fontsize=8)
    return figure


PICTURES: dict[str, Callable[[], Any]] = {"step": step, "bars": bars, "edge": edge}


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="where they go (default: here)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(out / f"{name}.png")
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()
