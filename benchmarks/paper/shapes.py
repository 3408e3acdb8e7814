"""Neurons started on a figure eight and on a surface of genus two, below and above the critical step size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.paper import drawing
from benchmarks.paper.clouds import figure_eight, genus_two
from benchmarks.paper.outcome import Outcome, Row, Table
from benchmarks.paper.training import Run, sgd, squared_error, train
from lightning_topo import Distortion, persistence, step_distortion
from lightning_topo.demo import FullBatch

LONG = math.log(2.0)
"""A bar of H1 is long if it lives to twice its birth."""
PROGRESS = 0.05
"""Shapes are compared where the loss has first come down to this fraction of its start."""
GAIN = 3.0
SHOWN = (0.5, 0.9, 2.0, 8.0)
"""The step sizes whose shapes are drawn, in units of the critical one."""


class TwoLayer(nn.Module):
    """x -> GAIN * mean_i tanh(w_i . x): neuron i is its incoming weights w_i; the outgoing are fixed and equal."""

    def __init__(self, neurons: Float[Tensor, "n d"]) -> None:
        super().__init__()
        n, d = neurons.shape
        self.hidden = nn.Linear(d, n, bias=False)
        self.hidden.weight.data.copy_(neurons)

    def forward(self, x: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
        return GAIN * torch.tanh(self.hidden(x)).mean(1)


@dataclass(frozen=True)
class Trial:
    """A training at `multiple` times the step size that is critical for the first step."""

    seed: int
    multiple: float
    eta: float
    run: Run

    @cached_property
    def r(self) -> np.ndarray:
        return self.run.series("critical_ratio")[1]

    @cached_property
    def step(self) -> int:
        """Where the loss first was at `PROGRESS` of its start, the last step if it never was."""
        steps, loss = self.run.loss
        reached = np.flatnonzero(loss <= PROGRESS * loss[0])
        # The loss is that before the step.
        return int(steps[reached[0]]) - 1 if len(reached) else max(self.run.clouds)

    def cloud(self, step: int) -> Tensor:
        (cloud,) = self.run.clouds[step].values()
        return cloud

    @cached_property
    def shape(self) -> Tensor:
        """The neurons at `step`."""
        return self.cloud(self.step)

    @cached_property
    def bars(self) -> np.ndarray:
        """log(death / birth) of the bars of H1 at `step`, the longest first."""
        return loops(self.shape)


def loops(cloud: Tensor) -> np.ndarray:
    """log(death / birth) of the bars of H1, the longest first."""
    bars = persistence(cloud)[1]
    return np.sort((bars.deaths / bars.births).log().numpy())[::-1]


def crossings(curve: Float[Tensor, "n 2"]) -> int:
    """How often the two closed polygons through the halves of a planar cloud cross themselves or each other.

    >>> bow_tie = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> crossings(torch.cat([bow_tie, bow_tie + 5.0]))
    2
    """
    loop_pairs = [(half, half.roll(-1, 0)) for half in curve.double().chunk(2)]
    start, end = (torch.cat(ends) for ends in zip(*loop_pairs, strict=True))

    def side(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
        """On which side of each line a-b each point p lies."""
        u, v = b - a, p[None] - a[:, None]
        return u[:, None, 0] * v[..., 1] - u[:, None, 1] * v[..., 0]

    apart = side(start, end, start) * side(start, end, end) < 0
    return int((apart & apart.T).sum()) // 2


def problem(shape: Float[Tensor, "n d"], seed: int) -> TensorDataset:
    """256 Gaussian inputs, and as targets the outputs of such a network with 16 neurons elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    d = shape.shape[1]
    x = torch.randn(256, d, generator=generator)
    centre = torch.randn(d, generator=generator)
    teacher = 0.8 * torch.randn(16, d, generator=generator) + centre / centre.norm()
    return TensorDataset(x, GAIN * torch.tanh(x @ teacher.T).mean(1))


def critical_eta(net: TwoLayer, data: TensorDataset) -> float:
    """The step size at which the first step of gradient descent has r = 1, exactly: r is linear in it."""
    x, y = data.tensors
    weight = net.hidden.weight
    (gradient,) = torch.autograd.grad(squared_error(net(x), y), weight)
    before = weight.detach().double()
    return 1.0 / step_distortion(before, before - gradient.double()).critical_ratio


def trial(shape: Float[Tensor, "n d"], seed: int, multiple: float, steps: int) -> Trial:
    data, net = problem(shape, seed), TwoLayer(shape)
    eta = multiple * critical_eta(net, data)
    run = train(
        net, squared_error, FullBatch(data, steps), sgd(eta), probes=[Distortion(every_n_steps=1)],
        keep=range(steps + 1), neurons={"hidden.weight": 0},
    )  # fmt: skip
    return Trial(seed, multiple, eta, run)


def row(name: str, found: Trial) -> Row:
    _, loss = found.run.loss
    whole = step_distortion(found.cloud(0), found.shape)
    # Fact: bars with log(death/birth) above this must survive a map with these constants.
    needed = 2.0 * max(math.log(whole.expansion), -math.log(max(whole.contraction, 1e-300)))
    start = loops(found.cloud(0))
    return {
        "shape": name,
        "seed": found.seed,
        "eta / eta*": found.multiple,
        "eta": found.eta,
        "largest r": float(found.r.max()),
        "steps with r >= 1": int((found.r >= 1).sum()),
        "loss, start": float(loss[0]),
        "loss, last": float(loss[-1]),
        "at step": found.step,
        "a since start": whole.contraction,
        "b since start": whole.expansion,
        "long bars": int((found.bars > LONG).sum()),
        "of the start": int((start > LONG).sum()),
        "guaranteed": int((start > needed).sum()),
        "crossings": crossings(found.shape) if name == "figure eight" else None,
    }


def draw(name: str, shown: Sequence[Trial], trials: Sequence[Trial]) -> Figure:
    """The shape at the start and after some of the trainings; r over the steps; the bars of H1."""
    flat = shown[0].shape.shape[1] == 2
    figure = drawing.figure(4.9)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.2))
    views: list[tuple[str, float | None, Tensor]] = [("start", None, shown[0].cloud(0))]
    views += [(f"{t.multiple:g} η*, step {t.step}", t.multiple, t.shape) for t in shown]
    bars = [loops(cloud) for _, _, cloud in views]
    for column, (title, multiple, cloud) in enumerate(views):
        axes: Any = top.add_subplot(1, len(views), column + 1, projection=None if flat else "3d")
        scatter(axes, cloud, views[0][2])
        axes.set_title(title, color=colour(multiple), loc="center")
        n_long = int((bars[column] > LONG).sum())
        width = float((cloud.amax(0) - cloud.amin(0)).max())
        lines = [f"{n_long} long loop{'s' * (n_long != 1)}", f"{crossings(cloud)} crossings" if flat else ""]
        note = "\n".join([", ".join(filter(None, lines)), f"{width:.1f} wide"])
        axes.annotate(note, (0.5, 0.0), xycoords="axes fraction", ha="center", va="top", fontsize=8)
    left, right = bottom.subplots(1, 2)
    for t in trials:
        if t.seed == shown[0].seed:
            left.plot(np.arange(1, len(t.r) + 1), t.r, color=colour(t.multiple), label=f"{t.multiple:g} η*")
    drawing.log_axis(left, None, 200.0)
    drawing.critical_line(left, "r = 1")
    left.set(
        title="Critical ratio of each step", xlabel="optimizer step", ylabel="r = η / η*, observed", xlim=(1, None)
    )
    left.legend(ncols=3, loc="upper right", columnspacing=1.2)
    draw_bars(right, [(title.split(",")[0], multiple) for title, multiple, _ in views], bars)
    return figure


def colour(multiple: float | None) -> Any:
    """Blue below the critical step size, orange to brown above it."""
    if multiple is None:
        return drawing.INK
    if multiple < 1:
        return drawing.CRITICAL(0.12 if multiple < 0.7 else 0.22)
    return drawing.CRITICAL(0.62 + 0.085 * math.log2(multiple))


def scatter(axes: Any, cloud: Tensor, start: Tensor) -> None:
    """The neurons, coloured by where they were at the start."""
    points, origin = cloud.double().numpy(), start.double().numpy()
    flat = points.shape[1] == 2
    hue = np.arange(len(points)) if flat else origin[:, 0] + 0.4 * origin[:, 1]
    axes.scatter(*points.T, c=hue, cmap="twilight_shifted" if flat else "viridis", s=4, linewidths=0)
    axes.set_axis_off()
    if flat:
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
    else:
        axes.view_init(elev=48, azim=-75)
        sides = np.ptp(points, axis=0)
        axes.set_box_aspect(sides / sides.max(), zoom=1.35)


def draw_bars(axes: Axes, views: Sequence[tuple[str, float | None]], bars: Sequence[np.ndarray]) -> None:
    """The longest bars of H1 by log(death / birth), side by side."""
    places = np.linspace(-0.34, 0.34, 12)
    for at, ((_, multiple), found) in enumerate(zip(views, bars, strict=True)):
        longest = found[:12]
        axes.bar(at + places[: len(longest)], longest, width=0.055, color=colour(multiple))
    axes.axhline(LONG, color=drawing.INK, linewidth=0.8, linestyle=(0, (4, 2)))
    note = "long: above the dashed line,\nwhere death = 2 birth"
    axes.text(1.0, 1.0, note, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.set_xticks(range(len(views)), [name for name, _ in views])
    axes.set(
        title="Loops: the 12 longest bars of $H_1$",
        ylabel="log(death / birth)",
        ylim=(0, 1.25 * max(found[0] for found in bars)),
    )
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def measure(small: bool) -> dict[str, list[Trial]]:
    """Every training, by shape; small: fewer neurons, step sizes and steps, one seed."""
    multiples = SHOWN if small else (*SHOWN[:3], 4.0, 8.0, 16.0)
    seeds, steps = (range(1), 12) if small else (range(3), 60)
    shapes = {
        "figure eight": figure_eight(80 if small else 240),
        "genus two": 0.5 * genus_two(250 if small else 600),
    }
    return {
        name: [trial(shape, seed, multiple, steps) for seed in seeds for multiple in multiples]
        for name, shape in shapes.items()
    }


def present(trials: dict[str, list[Trial]]) -> Outcome:
    """The evidence in them."""
    rows = [row(name, found) for name, several in trials.items() for found in several]
    figures = {}
    for name, several in trials.items():
        first = [found for found in several if found.seed == 0]
        figures[name.replace(" ", "-")] = draw(name, [found for found in first if found.multiple in SHOWN], first)
    return Outcome(
        "Neurons on a figure eight and on a surface of genus two",
        figures,
        [Table("eta* is the step size at which the first step has r = 1, measured on the starting cloud.", rows)],
    )
