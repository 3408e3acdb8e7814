"""A two-layer classifier whose 500 neurons start on a sphere: Betti numbers while it learns."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.paper import clouds, drawing
from benchmarks.paper.outcome import Outcome, Row, Table, spread
from benchmarks.paper.training import MakeOptimizer, Run, StepRatio, adam, sgd, stacked, train
from lightning_topo import Distortion, Persistence
from lightning_topo.demo import FullBatch
from lightning_topo.homology import betti_number, persistence

RADIUS = 0.3
RATES: dict[str, tuple[MakeOptimizer | Any, tuple[float, ...]]] = {
    "GD": (sgd, (0.1, 2.0, 8.0)),
    "Adam": (adam, (1e-4, 1e-3, 1e-2)),
}
COLOURS = ("#6eb0d8", "#0b63a5", "#c2560c")
"""Of the small, the middle and the large learning rate."""
N_SAMPLES = 500
SCALE = 0.25
"""Betti numbers are those of the Rips complex at this fraction of the diameter."""


@dataclass(frozen=True, slots=True)
class Trial:
    optimizer: str
    lr: float
    seed: int
    run: Run

    def cloud(self, step: int) -> Tensor:
        (cloud,) = self.run.clouds[step].values()
        return cloud


Trials = dict[tuple[str, float], list[Trial]]
"""By optimizer and learning rate, a trial a seed."""


def classifier(neurons: Float[Tensor, "n d"], n_inputs: int) -> nn.Sequential:
    """A two-layer tanh network; row i is neuron i: incoming weights, bias, outgoing weights."""
    n, d = neurons.shape
    net = nn.Sequential(nn.Linear(n_inputs, n), nn.Tanh(), nn.Linear(n, d - n_inputs - 1))
    with torch.no_grad():
        net[0].weight.copy_(neurons[:, :n_inputs])
        net[0].bias.copy_(neurons[:, n_inputs])
        net[2].weight.copy_(neurons[:, n_inputs + 1 :].T)
        net[2].bias.zero_()
    return net


def load(path: Path | None) -> tuple[Float[Tensor, "m d"], Int[Tensor, " m"]]:
    """scikit-learn's digits, or the arrays `x` (a row a sample) and `y` (classes 0, 1, ...) of an .npz file."""
    if path is None:
        x, y = load_digits(return_X_y=True)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    inputs = torch.tensor(np.asarray(x, dtype=np.float32)).flatten(1)
    inputs = inputs - inputs.mean(0)
    return inputs / inputs.std(), torch.tensor(np.asarray(y)).long()


def trial(data: tuple[Tensor, Tensor], name: str, lr: float, seed: int, n: int, steps: int, every: int) -> Trial:
    x, y = data
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:N_SAMPLES]
    n_classes = int(y.max()) + 1
    neurons = clouds.sphere(n, x.shape[1] + 1 + n_classes, RADIUS, seed)
    make, _ = RATES[name]
    run = train(
        classifier(neurons, x.shape[1]),
        nn.functional.cross_entropy,
        FullBatch(TensorDataset(x[chosen], y[chosen]), steps),
        make(lr),
        probes=[
            StepRatio(),
            Distortion(every_n_steps=every),
            Persistence(every_n_steps=every, max_landmarks=None, betti_scale=SCALE),
        ],
        keep=(0, steps),
    )
    return Trial(name, lr, seed, run)


def row(found: list[Trial]) -> Row:
    """One setting, over its seeds."""
    r = [t.run.series("r")[1] for t in found]
    betti = {k: [t.run.series(f"betti_{k}")[1] for t in found] for k in (0, 1)}
    starts = [persistence(t.cloud(0), 0) for t in found]
    return {
        "optimizer": found[0].optimizer,
        "lr": found[0].lr,
        "loss at the end": spread([float(t.run.loss[1][-1]) for t in found]),
        "r, first step": spread([float(v[0]) for v in r]),
        "r, largest": spread([float(v.max()) for v in r]),
        "steps with r >= 1": spread([int((v >= 1).sum()) for v in r]),
        "a since start": spread([float(t.run.series("total_contraction", worst=min)[1][-1]) for t in found]),
        "b since start": spread([float(t.run.series("total_expansion")[1][-1]) for t in found]),
        "b0, start": spread([betti_number(start, 0, SCALE * start.diameter) for start in starts]),
        "b0, end": spread([v[-1] for v in betti[0]]),
        "b0, largest": spread([v.max() for v in betti[0]]),
        "b1, end": spread([v[-1] for v in betti[1]]),
    }


def draw(trials: Trials, steps: int) -> Figure:
    figure = drawing.figure(6.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.6, 1.0))
    axes = top.subplots(3, 2, sharex=True, sharey="row")
    for column, (name, (_, rates)) in enumerate(RATES.items()):
        r_axes, b_axes, stretch = axes[:, column]
        for lr, colour in zip(rates, COLOURS, strict=True):
            runs = [t.run for t in trials[name, lr]]
            draw_band = partial(drawing.band, colour=colour, label=f"η = {lr:g}")
            for ax, quantity in ((r_axes, "r"), (b_axes, "betti_0"), (stretch, "total_expansion")):
                draw_band(ax, *stacked(runs, quantity))
        r_axes.set_title("Full-batch gradient descent" if name == "GD" else name)
        r_axes.legend(ncols=3, loc="upper right", columnspacing=1.2)
        drawing.critical_line(r_axes, "r = 1")
        drawing.log_axis(r_axes, 1e-4, 1e4)
        drawing.log_axis(b_axes, 0.8, None)
        drawing.log_axis(stretch, 0.8, None)
        stretch.set(xlabel="optimizer step", xlim=(0, steps))
    axes[0, 0].set_ylabel("critical ratio r\nof each step")
    axes[1, 0].set_ylabel("$b_0$ at a quarter\nof the diameter")
    axes[2, 0].set_ylabel("largest expansion\nsince the start")
    shown = [("start", trials["GD", RATES["GD"][1][0]][0].cloud(0))]
    for name, (_, rates) in RATES.items():
        for lr in (rates[0], rates[-1]):
            found = trials[name, lr][0]
            shown.append((f"{name}, {lr:g}", found.cloud(max(found.run.clouds))))
    for place, (title, cloud) in enumerate(shown):
        ax = bottom.add_subplot(1, len(shown), place + 1)
        centred = (cloud - cloud.mean(0)).double()
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        origin = shown[0][1].double()
        _, _, first = torch.linalg.svd(origin - origin.mean(0), full_matrices=False)
        ax.scatter(*(centred @ directions[:2].T).T.numpy(), c=origin @ first[0], cmap="viridis", s=3, linewidths=0)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_axis_off()
        ax.set_title(title, loc="center")
    return figure


def measure(small: bool, data: Path | None = None) -> Trials:
    """Every training; small: fewer neurons and steps."""
    n, steps, every, seeds = (100, 20, 10, range(1)) if small else (500, 1000, 50, range(3))
    arrays = load(data)
    return {
        (name, lr): [trial(arrays, name, lr, seed, n, steps, every) for seed in seeds]
        for name, (_, rates) in RATES.items()
        for lr in rates
    }


def present(trials: Trials) -> Outcome:
    """The evidence in them."""
    runs = next(iter(trials.values()))
    n, steps = len(runs[0].cloud(0)), max(max(t.run.clouds) for found in trials.values() for t in found)
    caption = f"{n} neurons, {steps} full-batch steps; ranges are those of {len(runs)} seed{'s' * (len(runs) > 1)}."
    return Outcome(
        "A classifier whose neurons start on a sphere",
        {"": draw(trials, steps)},
        [Table(caption, [row(found) for found in trials.values()])],
    )
