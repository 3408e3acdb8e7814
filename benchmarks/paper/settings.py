"""The paper's own settings, as far as they can be had: Adam on images of 28 x 28, and neurons in space just below and
just above their critical learning rate, beside what the curvature says of it."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper import clouds, drawing, shapes
from benchmarks.paper.outcome import Outcome, Row, Table, spread
from benchmarks.paper.sphere import RADIUS, SCALE, classifier
from benchmarks.paper.training import Run, StepRatio, adam, sgd, squared_error, stacked, train
from lightning_topo import Distortion, Persistence, sharpness, step_distortion
from lightning_topo.demo import FullBatch
from lightning_topo.homology import betti_number, persistence

RATES = (1e-5, 1e-3)
"""Adam's."""
CRITICAL = 8.5e-4
"""The loss of the neurons in space is scaled so that this is their critical learning rate in the first step."""
SPATIAL_RATES = (4e-4, 8e-4, 9e-4, 1.2e-3, 1.7e-3)
BATCH = 100


@dataclass(frozen=True, slots=True)
class OnImages:
    """A training of the classifier with Adam."""

    lr: float
    seed: int
    accuracy: float
    run: Run

    def cloud(self, step: int) -> Tensor:
        (cloud,) = self.run.clouds[step].values()
        return cloud

    def b0(self, step: int) -> int:
        diagrams = persistence(self.cloud(step), 0)
        return betti_number(diagrams, 0, SCALE * diagrams.diameter)


@dataclass(frozen=True)
class InSpace:
    """A training of neurons on the surface of genus two; `sharpness` is that of the loss before the first step."""

    lr: float
    seed: int
    sharpness: float
    run: Run

    @cached_property
    def r(self) -> Float[Any, " steps"]:
        return self.run.series("critical_ratio")[1]

    def cloud(self, step: int) -> Tensor:
        (cloud,) = self.run.clouds[step].values()
        return cloud

    @property
    def last(self) -> int:
        return max(self.run.clouds)


@dataclass(frozen=True, slots=True)
class Trials:
    """Everything measured, by learning rate."""

    on_images: dict[float, list[OnImages]]
    in_space: dict[float, list[InSpace]]


def images() -> tuple[Float[Tensor, "m 784"], Int[Tensor, " m"]]:
    """scikit-learn's digits of 8 x 8 pixels, drawn on 28 x 28 by interpolation."""
    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    large = F.interpolate(small, (28, 28), mode="bilinear").flatten(1)
    large = large - large.mean(0)
    return large / large.std(), torch.tensor(labels).long()


def turned(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> int:
    """How many pairs a step has turned by more than a right angle, which only r >= 1 allows.

    >>> turned(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.0], [0.0], [5.0]]))
    1
    """
    x, y = before.double(), after.double()

    def products(a: Tensor, b: Tensor) -> Tensor:
        """<a_i - a_j, b_i - b_j> of all pairs."""
        mixed = a @ b.T
        own = mixed.diagonal()
        return own[:, None] + own[None, :] - mixed - mixed.T

    return int((products(x, y) < 0).triu(1).sum())


def on_images(data: tuple[Tensor, Tensor], lr: float, seed: int, n: int, steps: int, every: int) -> OnImages:
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learned, kept = order[:1500], order[1500:]
    draws = torch.Generator().manual_seed(seed)
    batches = [learned[torch.randint(1500, (BATCH,), generator=draws)] for _ in range(steps)]
    net = classifier(clouds.sphere(n, 784 + 1 + 10, RADIUS, seed), 784)
    run = train(
        net,
        nn.functional.cross_entropy,
        [(x[batch], y[batch]) for batch in batches],  # pyright: ignore[reportArgumentType]
        adam(lr),
        probes=[
            StepRatio(),
            Distortion(every_n_steps=every),
            Persistence(every_n_steps=every, max_landmarks=None, betti_scale=SCALE),
        ],
        keep=(0, steps),
    )
    with torch.no_grad():
        accuracy = (net(x[kept]).argmax(1) == y[kept]).float().mean()
    return OnImages(lr, seed, float(accuracy), run)


def in_space(shape: Float[Tensor, "n 3"], lr: float, seed: int, steps: int) -> InSpace:
    data, net = shapes.problem(shape, seed), shapes.TwoLayer(shape)
    factor = shapes.critical_eta(net, data) / CRITICAL

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return factor * squared_error(output, target)

    x, y = data.tensors
    curvature = sharpness(lambda: loss(net(x), y), net.parameters()).value
    run = train(
        net, loss, FullBatch(data, steps), sgd(lr), probes=[Distortion(every_n_steps=1)],
        keep=range(steps + 1), neurons={"hidden.weight": 0},
    )  # fmt: skip
    return InSpace(lr, seed, curvature, run)


def image_row(found: list[OnImages]) -> Row:
    r = [t.run.series("r")[1] for t in found]
    betti = [t.run.series("betti_0")[1] for t in found]
    return {
        "lr": found[0].lr,
        "accuracy": spread([t.accuracy for t in found]),
        "r, first step": spread([float(v[0]) for v in r]),
        "r, largest": spread([float(v.max()) for v in r]),
        "steps with r >= 1": spread([int((v >= 1).sum()) for v in r]),
        "a since start": spread([float(t.run.series("total_contraction", worst=min)[1][-1]) for t in found]),
        "b since start": spread([float(t.run.series("total_expansion")[1][-1]) for t in found]),
        "b0, start": spread([t.b0(0) for t in found]),
        "b0, end": spread([v[-1] for v in betti]),
        "b0, largest": spread([v.max() for v in betti]),
    }


def space_row(found: list[InSpace]) -> Row:
    """One learning rate, over its seeds; K is taken to be the sharpness at the start."""
    first = [step_distortion(t.cloud(0), t.cloud(1)) for t in found]
    ends = [shapes.loops(t.cloud(t.last)) for t in found]
    return {
        "lr": found[0].lr,
        "lr K": spread([t.lr * t.sharpness for t in found]),
        "lr K / 2": spread([t.lr * t.sharpness / 2 for t in found]),
        "r, first step": spread([d.critical_ratio for d in first]),
        "pairs turned, first step": spread([turned(t.cloud(0), t.cloud(1)) for t in found]),
        "smallest distance ratio, first step": spread([d.contraction for d in first]),
        "r, largest": spread([float(t.r.max()) for t in found]),
        "steps with r >= 1": spread([int((t.r >= 1).sum()) for t in found]),
        "pairs turned, all steps": spread(
            [sum(turned(t.cloud(k), t.cloud(k + 1)) for k in range(t.last)) for t in found]
        ),
        "loss, last / first": spread([float(t.run.loss[1][-1] / t.run.loss[1][0]) for t in found]),
        "long bars, end": spread([int((bars > shapes.LONG).sum()) for bars in ends]),
    }


def draw(trials: Trials) -> Figure:
    figure = drawing.figure(5.6)
    (r_axes, b_axes), (space_axes, turn_axes) = figure.subplots(2, 2)
    for (lr, found), colour in zip(trials.on_images.items(), ("#6eb0d8", "#c2560c"), strict=True):
        draw_band = partial(drawing.band, colour=colour, label=f"η = {lr:g}")
        draw_band(r_axes, *stacked([t.run for t in found], "r"))
        draw_band(b_axes, *stacked([t.run for t in found], "betti_0"))
    drawing.log_axis(r_axes, None, 3.0)
    drawing.critical_line(r_axes, "r = 1")
    drawing.log_axis(b_axes, 0.8, None)
    r_axes.set(title="Images of 28 x 28, Adam", xlabel="optimizer step", ylabel="critical ratio r of each step")
    b_axes.set(title="Pieces", xlabel="optimizer step", ylabel="$b_0$ at a quarter of the diameter")
    r_axes.legend(loc="upper right", bbox_to_anchor=(1.0, 0.85))
    for (lr, found), colour in zip(trials.in_space.items(), drawing.SERIES, strict=False):
        t = found[0]
        space_axes.plot(range(1, len(t.r) + 1), t.r, color=colour, label=f"η = {lr:g}")
        counts = [turned(t.cloud(k), t.cloud(k + 1)) for k in range(t.last)]
        turn_axes.plot(range(1, t.last + 1), counts, color=colour, label=f"η = {lr:g}", marker=".", markersize=4)
    drawing.log_axis(space_axes, None, 20.0)
    drawing.critical_line(space_axes, "r = 1")
    space_axes.set(
        title=f"Neurons in space, η* = {CRITICAL:g}", xlabel="optimizer step", ylabel="critical ratio r of each step"
    )
    space_axes.legend(ncols=2, loc="upper right")
    turn_axes.set_yscale("symlog", linthresh=1.0)
    turn_axes.set_ylim(bottom=0.0)
    turn_axes.set(title="Pairs that a step turns around", xlabel="optimizer step", ylabel="pairs of the step")
    for axes in (space_axes, turn_axes):
        axes.set_xlim(1, 12)
    return figure


def measure(small: bool) -> Trials:
    """Every training; small: fewer neurons and steps, one seed."""
    n, steps, every, seeds = (60, 20, 10, range(1)) if small else (500, 2000, 100, range(3))
    points, spatial_steps = (150, 8) if small else (600, 60)
    shape = 0.5 * clouds.genus_two(points)
    data = images()
    return Trials(
        {lr: [on_images(data, lr, seed, n, steps, every) for seed in seeds] for lr in RATES},
        {lr: [in_space(shape, lr, seed, spatial_steps) for seed in seeds] for lr in SPATIAL_RATES},
    )


def present(trials: Trials) -> Outcome:
    """The evidence in them."""
    on, space = trials.on_images[RATES[0]], trials.in_space[SPATIAL_RATES[0]]
    steps, seeds = max(on[0].run.clouds), len(on)
    ranges = f"ranges are those of {seeds} seed{'s' * (seeds > 1)}."
    return Outcome(
        "The paper's own settings",
        {"": draw(trials)},
        [
            Table(
                f"784-{len(on[0].cloud(0))}-10, tanh, Adam, {steps} batches of {BATCH}; {ranges}",
                [image_row(found) for found in trials.on_images.values()],
            ),
            Table(
                f"{len(space[0].cloud(0))} neurons on a surface of genus two, gradient descent, {space[0].last} steps; "
                f"{ranges} K is the sharpness before the first step.",
                [space_row(found) for found in trials.in_space.values()],
            ),
        ],
    )
