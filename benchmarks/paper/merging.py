"""Do neurons merge only where the curvature of their swap, times eta, passes 1? Phases over learning rate and time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.paper import drawing
from benchmarks.paper.clouds import figure_eight
from benchmarks.paper.outcome import Outcome, Row, Table
from benchmarks.paper.shapes import GAIN, TwoLayer, problem
from benchmarks.paper.training import Run, sgd, squared_error, train
from lightning_topo import Distortion, Phase, Sharpness
from lightning_topo.demo import FullBatch, digits
from lightning_topo.probes import Period

NEAR = 0.01
"""Neurons have approached each other where the closest two are at this fraction of the closest two's first distance."""


class ClosePairs:
    """A probe of one's own: the closest two neurons, and how many pairs a step has turned around.

    A pair is turned around where <x_i - x_j, x'_i - x'_j> <= 0: moving straight, it has passed the point at which
    the two come as near as the step lets them. That needs r >= 1.
    """

    name = "close_pairs"
    period = Period(1)

    def measure(self, capture: Any) -> Mapping[str, float]:
        ((name, after),) = capture.neurons.items()
        before = after if capture.before is None else capture.before[name]
        x, y = before.double(), after.double()
        upper = torch.triu_indices(len(x), len(x), 1).unbind()
        products = x @ y.T
        along = products.diag()[:, None] + products.diag()[None, :] - products - products.T
        return {
            "closest": float(torch.nn.functional.pdist(y).min()),
            "turned": float((along[upper] <= 0).sum()) if capture.before is not None else 0.0,
        }


@dataclass(frozen=True, slots=True)
class Setting:
    """A problem, the learning rates to try, and which of them to show one by one.

    The swap ratio is the largest over so many of the closest `pairs`; the figure eight has as many neighbours.
    """

    name: str
    make: Callable[[int], tuple[nn.Module, TensorDataset]]
    rates: Sequence[float]
    shown: Sequence[float]
    steps: int
    every: int
    pairs: int
    neurons: Mapping[str, int] | None = None


def digits_net(seed: int) -> tuple[nn.Module, TensorDataset]:
    """A 64-64-10 tanh network on 500 digits: 64 neurons in 75 dimensions."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)), digits()


def planar_net(seed: int) -> tuple[nn.Module, TensorDataset]:
    """120 neurons on a figure eight in the plane, and a target of 16 neurons."""
    shape = figure_eight(120)
    return TwoLayer(shape), problem(shape, seed)


def attracted_net(seed: int) -> tuple[nn.Module, TensorDataset]:
    """The same, with a target that only one neuron many times over can give: all are drawn to one point."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 2, generator=generator)
    centre = torch.randn(2, generator=generator)
    return TwoLayer(figure_eight(120)), TensorDataset(x, GAIN * torch.tanh(x @ (1.2 * centre / centre.norm())))


PLANE = {"hidden.weight": 0}
PLANE_RATES, PLANE_SHOWN = np.geomspace(3.0, 768.0, 9).tolist(), (6.0, 24.0, 192.0)
SETTINGS = (
    Setting("digits, 64-64-10", digits_net, np.geomspace(0.1, 25.6, 9).tolist(), (0.2, 0.8, 6.4), 100, 10, 8),
    Setting("figure eight", planar_net, PLANE_RATES, PLANE_SHOWN, 40, 8, 120, PLANE),
    Setting("figure eight, one target", attracted_net, PLANE_RATES, PLANE_SHOWN, 40, 8, 120, PLANE),
)


@dataclass(frozen=True)
class Trial:
    setting: Setting
    lr: float
    seed: int
    run: Run

    def by_step(self, name: str) -> np.ndarray:
        """A quantity at every step from 0 on; between measurements the last value, NaN beyond a divergence."""
        steps, values = self.run.series(name)
        filled = np.full(self.setting.steps + 1, np.nan)
        filled[steps] = values
        last = int(self.run.loss[0][-1])
        for step in range(1, last + 1):
            if np.isnan(filled[step]):
                filled[step] = filled[step - 1]
        return filled

    @cached_property
    def judged(self) -> "tuple[np.ndarray, ...]":
        """At each measurement of curvature: swap ratio, eta_lambda, and of the step that follows r and turned pairs."""
        steps, swap = self.run.series("swap_ratio")
        eta_lambda = dict(zip(*self.run.series("eta_lambda"), strict=True))
        r, turned = (dict(zip(*self.run.series(name), strict=True)) for name in ("critical_ratio", "turned"))
        kept = [(s, eta_lambda[t], r[t + 1], turned[t + 1]) for t, s in zip(steps, swap, strict=True) if t + 1 in r]
        return tuple(np.array(kept, dtype=float).reshape(-1, 4).T)  # none where it diverged before the first


def trial(setting: Setting, lr: float, seed: int) -> Trial:
    net, data = setting.make(seed)
    probes = [
        Distortion(every_n_steps=1),
        Sharpness(every_n_steps=setting.every, swap_pairs=setting.pairs),
        ClosePairs(),
    ]
    still = setting.every
    batches = FullBatch(data, still + setting.steps)
    run = train(net, squared_error, batches, sgd(lr), probes=probes, neurons=setting.neurons, still=still)
    return Trial(setting, lr, seed, run)


def row(found: Trial) -> Row:
    run = found.run
    r, turned = run.series("critical_ratio")[1], run.series("turned")[1]
    closest = run.series("closest")[1] / run.series("closest")[1][0]
    eta_lambda, swap = run.series("eta_lambda")[1], run.series("swap_ratio")[1]
    near = np.flatnonzero(closest <= NEAR)
    so_far = r[: near[0]] if len(near) else r
    return {
        "setting": found.setting.name,
        "seed": found.seed,
        "lr": found.lr,
        "eta lambda, first": float(eta_lambda[0]) if len(eta_lambda) else None,
        "eta lambda, largest": float(eta_lambda.max()) if len(eta_lambda) else None,
        "swap ratio, first": float(swap[0]) if len(swap) else None,
        "swap ratio, largest": float(swap.max()) if len(swap) else None,
        "r, first step": float(r[0]),
        "r, largest": float(r.max()),
        "steps with r >= 1": int((r >= 1).sum()),
        "steps that turn pairs": int((turned > 0).sum()),
        "closest pair, least / start": float(closest.min()),
        "approached at step": int(near[0]) if len(near) else None,
        "largest r until then": float(so_far.max()) if len(near) and near[0] > 0 else None,
        "distinct neurons, fewest": int(run.series("distinct_neurons", worst=min)[1].min()),
        "loss at the end": float(run.loss[1][-1]),
        "diverged": run.diverged,
    }


def judgement(trials: Sequence[Trial]) -> list[Row]:
    """How often a step with r >= 1, or one that turns a pair around, follows each state of the curvature."""
    rows: list[Row] = []
    for name in dict.fromkeys(t.setting.name for t in trials):
        columns = zip(*(t.judged for t in trials if t.setting.name == name), strict=True)
        swap, eta_lambda, r, turned = (np.concatenate(column) for column in columns)
        states = {
            "swap < 1, eta lambda < 1": (swap < 1) & (eta_lambda < 1),
            "swap < 1, eta lambda >= 1": (swap < 1) & (eta_lambda >= 1),
            "swap >= 1": swap >= 1,
        }
        for state, chosen in states.items():
            n = int(chosen.sum())
            rows.append(
                {
                    "setting": name,
                    "before the step": state,
                    "measurements": n,
                    "next step has r >= 1": int((r[chosen] >= 1).sum()),
                    "next step turns a pair": int((turned[chosen] > 0).sum()),
                    "r of the next step / swap ratio, median": float(np.median(r[chosen] / swap[chosen]))
                    if n
                    else None,
                }
            )
    return rows


def draw_phases(settings: Sequence[Setting], trials: Sequence[Trial]) -> Figure:
    """Learning rate x time, coloured by phase, with eta* by curvature and by observation."""
    figure = drawing.figure(3.9)
    axes = figure.subplots(1, len(settings))
    for ax, setting in zip(axes, settings, strict=True):
        draw_diagram(ax, setting, [t for t in trials if t.setting == setting and t.seed == 0])
        ax.set_title(setting.name)
        ax.set_xlabel("optimizer step")
    axes[0].set_ylabel("learning rate η")
    shown = (Phase.PRESERVED, Phase.UNPROTECTED, Phase.EDGE_OF_STABILITY, Phase.BREAKDOWN)
    handles = drawing.phase_handles(shown)
    handles += [axes[0].plot([], [], color=drawing.INK, linestyle=style, label=label)[0] for style, label in CRITICAL]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


CRITICAL = (((0, (4, 1.5)), "η* by curvature: ηλ = 1"), ((0, (1, 1)), "swap ratio = 1"), ("-", "η* as observed: r = 1"))


def draw_diagram(ax: Axes, setting: Setting, trials: Sequence[Trial]) -> None:
    rates = np.array([t.lr for t in trials])
    codes = np.full((len(trials), setting.steps), np.nan)
    for line, found in zip(codes, trials, strict=True):
        for step, phase in found.run.phases:
            line[max(step - 1, 0) :] = int(phase)
        if found.run.diverged:
            line[int(found.run.loss[0][-1]) :] = np.nan
    half = np.sqrt(rates[1] / rates[0])
    edges = np.concatenate([[rates[0] / half], rates * half])
    ax.set_facecolor("#ffffff")
    ax.patch.set(hatch="////", edgecolor=drawing.GRID)
    ax.pcolormesh(np.arange(setting.steps + 1), edges, codes, cmap=drawing.PHASE_CMAP, norm=drawing.PHASE_NORM)
    ax.set_yscale("log")
    times = np.arange(1, setting.steps + 1)
    for name, (style, _) in zip(("eta_lambda", "swap_ratio", "critical_ratio"), CRITICAL, strict=True):
        values = np.stack([found.by_step(name)[1:] for found in trials])
        window = setting.every if name != "critical_ratio" else 5
        values = np.stack([np.nanmax(_windows(line, window), axis=1) for line in np.nan_to_num(values, nan=1e9)])
        with np.errstate(divide="ignore"):
            height = np.log(np.maximum(values, 1e-12))
        lines = ax.contour(times, rates, height, levels=[0.0], colors=drawing.INK, linestyles=[style], linewidths=1.4)
        lines.set(path_effects=drawing.HALO)


def _windows(line: np.ndarray, width: int) -> np.ndarray:
    """Of each entry, the entries up to `width` before it, itself among them."""
    padded = np.concatenate([np.full(width - 1, line[0]), line])
    return np.lib.stride_tricks.sliding_window_view(padded, width)


def draw_courses(settings: Sequence[Setting], trials: Sequence[Trial]) -> Figure:
    """r, swap ratio, eta lambda and the closest pair's distance on one axis, over time."""
    figure = drawing.figure(6.4)
    axes = figure.subplots(len(settings), 3, sharey="row", sharex="row", squeeze=False)
    for line, setting in zip(axes, settings, strict=True):
        for ax, lr in zip(line, setting.shown, strict=True):
            found = next(t for t in trials if t.setting == setting and t.seed == 0 and np.isclose(t.lr, lr))
            closest = found.run.series("closest")
            courses = (
                (found.run.series("eta_lambda"), drawing.ETA_LAMBDA, "ηλ"),
                (found.run.series("swap_ratio"), drawing.SWAP, "swap ratio, closest pairs"),
                (found.run.series("critical_ratio"), drawing.R, "r, all pairs"),
                ((closest[0], closest[1] / closest[1][0]), drawing.DISTANCE, "closest distance / its start"),
            )
            for (steps, values), colour, label in courses:
                ax.plot(steps, values, color=colour, label=label)
            drawing.log_axis(ax, 1e-4, 100.0)
            drawing.critical_line(ax)
            ax.set_title(f"η = {lr:g}" + (", diverges" if found.run.diverged else ""))
            ax.set_xlim(0, setting.steps)
        line[0].set_ylabel(setting.name)
    for ax in axes[-1]:
        ax.set_xlabel("optimizer step")
    figure.legend(handles=axes[0, 0].lines[:1] + axes[0, 0].lines[1:4], loc="outside upper center", ncols=4)
    return figure


def measure(small: bool) -> list[Trial]:
    """Every training, of three seeds; small: one seed, three learning rates, few steps."""
    settings = [replace(s, rates=s.shown, steps=12, every=4) if small else s for s in SETTINGS]
    return [trial(s, lr, seed) for s in settings for lr in s.rates for seed in range(1 if small else 3)]


def present(trials: Sequence[Trial]) -> Outcome:
    """The evidence in them."""
    settings = list({t.setting.name: t.setting for t in trials}.values())
    before = "Each measurement of curvature, and what the step after it did; all learning rates together."
    return Outcome(
        "Do neurons merge only where the swap's curvature passes 1?",
        {"phases": draw_phases(settings, trials), "courses": draw_courses(settings, trials)},
        [Table(before, judgement(trials)), Table("Every training.", [row(t) for t in trials])],
    )
