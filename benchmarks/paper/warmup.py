"""What learning-rate warm-up does to r, layer by layer: a small CNN and a small GPT under AdamW with a schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from torch import nn

from benchmarks.paper import drawing
from benchmarks.paper.models import CNN, GPT, Batches, digit_batches, source_batches, warm_cosine
from benchmarks.paper.outcome import Outcome, Row, Table, spread
from benchmarks.paper.training import Run, train
from lightning_topo import Distortion

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Batches]]] = {
    "CNN on digits": (CNN, digit_batches),
    "GPT on source code": (GPT, source_batches),
}
LEARNING_RATE = 1e-2


@dataclass(frozen=True, slots=True)
class Case:
    """One model, with a warm-up over so many steps, or none."""

    model: str
    warm_up: int

    @property
    def label(self) -> str:
        return f"warm-up over {self.warm_up} steps" if self.warm_up else "no warm-up"


Trials = dict[Case, list[Run]]


def trial(case: Case, seed: int, steps: int) -> Run:
    make, batches = MODELS[case.model]
    torch.manual_seed(seed)
    return train(
        make(),
        nn.functional.cross_entropy,
        batches(steps, seed=seed),  # pyright: ignore[reportArgumentType]  # a list is a data set
        partial(torch.optim.AdamW, lr=LEARNING_RATE),
        probes=[Distortion(every_n_steps=1)],
        schedule=partial(warm_cosine, steps=steps, warm_up=case.warm_up),
    )


def measure(small: bool) -> Trials:
    """Every training; small: one seed, few steps."""
    steps, warm_up = (12, 6) if small else (130, 100)
    cases = [Case(model, up) for model in MODELS for up in (0, warm_up)]
    return {case: [trial(case, seed, steps) for seed in range(1 if small else 3)] for case in cases}


def worst(run: Run) -> np.ndarray:
    """r of the worst layer at every step."""
    return run.series("critical_ratio")[1]


def row(case: Case, runs: list[Run]) -> Row:
    """One case, over its seeds."""
    r = [worst(run) for run in runs]
    return {
        "model": case.model,
        "warm-up": case.warm_up or None,
        "r, first step": spread([float(v[0]) for v in r]),
        "r, largest": spread([float(v.max()) for v in r]),
        "at step": spread([int(v.argmax()) + 1 for v in r]),
        "r, largest after step 10": spread([float(v[10:].max()) for v in r]),
        "steps with r >= 1": spread([int((v >= 1).sum()) for v in r]),
        "worst layer": ", ".join(sorted({plain(worst_layer(run)) for run in runs})),
        "loss, last 20 steps": spread([float(run.loss[1][-20:].mean()) for run in runs]),
    }


def worst_layer(run: Run) -> str:
    """The group with the largest r of the whole training."""
    return max(run.record.groups, key=lambda group: run.series("critical_ratio", group)[1].max())


def plain(group: str) -> str:
    return group.removeprefix("net.")


def layer_rows(trials: Trials) -> list[Row]:
    """r of every layer, with and without warm-up."""
    rows: list[Row] = []
    for model in MODELS:
        several = {case: runs for case, runs in trials.items() if case.model == model}
        for group in next(iter(several.values()))[0].record.groups:
            values = {case: [run.series("critical_ratio", group)[1] for run in runs] for case, runs in several.items()}
            line: dict[str, str] = {"model": model, "neurons": plain(group)}
            for case, found in values.items():
                line[f"first step, {case.label}"] = spread([float(v[0]) for v in found])
                line[f"largest, {case.label}"] = spread([float(v.max()) for v in found])
            rows.append(line)
    return rows


def draw(trials: Trials) -> Figure:
    """A map of r, layer by step, for each model without and with warm-up; below them the worst layer's course."""
    figure = drawing.figure(6.0)
    groups = {model: next(r for c, r in trials.items() if c.model == model)[0].record.groups for model in MODELS}
    heights = [*(0.5 + 0.17 * len(found) for found in groups.values()), 1.9]
    axes = figure.subplots(3, 2, height_ratios=heights)
    mesh = None
    for line, model in zip(axes, MODELS, strict=False):
        cases = [case for case in trials if case.model == model]
        for ax, case in zip(line, cases, strict=True):
            mesh = draw_map(ax, trials[case], groups[model])
            ax.set_title(f"{model.split()[0]}, {case.label}")
        line[0].set_yticks(range(len(groups[model])), [plain(group) for group in groups[model]], fontsize=7)
        line[1].set_yticks([])
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=axes[:2, :], label="r = η / η*, critical at 1", extend="both", shrink=0.9, aspect=30)
    bar.ax.axhline(1.0, color=drawing.INK, linewidth=0.8)
    for ax, model in zip(axes[2], MODELS, strict=True):
        for case, runs in trials.items():
            if case.model == model:
                colour = drawing.SERIES[0] if case.warm_up else drawing.SERIES[1]
                values = np.stack([worst(run) for run in runs])
                steps = np.arange(1, values.shape[1] + 1)
                drawing.band(ax, steps, values, colour, case.label)
        drawing.log_axis(ax, 1e-4, 10.0)
        drawing.critical_line(ax)
        drawing.log_steps(ax)
        ax.set(title=f"{model}: worst layer", xlabel="optimizer step", xlim=(1, None))
    axes[2, 0].set_ylabel("critical ratio r")
    figure.legend(handles=axes[2, 0].lines[: len(axes[2, 0].lines) - 1], loc="outside lower center", ncols=2)
    return figure


def draw_map(ax: Axes, runs: list[Run], groups: tuple[str, ...]) -> QuadMesh:
    """The median r of several seeds, a row a layer, on a logarithmic axis of steps: the first ones matter most."""
    median = np.stack([np.median([run.series("critical_ratio", group)[1] for run in runs], axis=0) for group in groups])
    edges = np.arange(1, median.shape[1] + 2)
    mesh = ax.pcolormesh(
        edges, np.arange(len(groups) + 1) - 0.5, median, cmap=drawing.CRITICAL, norm=drawing.critical_norm(2.0)
    )
    drawing.log_steps(ax)
    ax.invert_yaxis()
    ax.tick_params(left=False)
    return mesh


def present(trials: Trials) -> Outcome:
    """The evidence in them."""
    n, steps = len(next(iter(trials.values()))), len(worst(next(iter(trials.values()))[0]))
    mapping: Mapping[str, str] = {
        "schedule": f"{steps} steps; a linear rise, where there is one, then half a cosine down to 0",
        "optimizer": f"AdamW, learning rate {LEARNING_RATE:g}, all else as torch has it",
    }
    caption = f"The worst layer of each step; ranges are those of {n} seed{'s' * (n > 1)}."
    return Outcome(
        "Learning-rate warm-up and r, layer by layer",
        {"": draw(trials)},
        [
            Table(caption, [row(case, runs) for case, runs in trials.items()]),
            Table("Layer by layer.", layer_rows(trials)),
        ],
        mapping,
    )
