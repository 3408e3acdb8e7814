"""Sharpness beside topology, up to the edge of stability: gradient descent and Adam."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.paper import drawing
from benchmarks.paper.outcome import Outcome, Row, Table, spread
from benchmarks.paper.training import MakeOptimizer, Run, StepRatio, adam, sgd, squared_error, stacked, train
from lightning_topo import Distortion, Persistence, Phase, Sharpness
from lightning_topo.demo import DigitsMLP, FullBatch, digits


@dataclass(frozen=True, slots=True)
class Setting:
    """One training of the 64-64-64-10 tanh network; the controls have a learning rate too small for the edge."""

    optimizer: str
    lr: float
    steps: int
    is_control: bool

    @property
    def name(self) -> str:
        return f"{self.optimizer}, lr {self.lr:g}"

    @property
    def make(self) -> MakeOptimizer:
        return sgd(self.lr) if self.optimizer == "GD" else adam(self.lr)


SETTINGS = (
    Setting("GD", 0.3, 500, False),
    Setting("GD", 0.1, 600, True),
    Setting("Adam", 3e-3, 400, False),
    Setting("Adam", 3e-4, 400, True),
)


def trial(setting: Setting, seed: int, steps: int) -> Run:
    torch.manual_seed(seed)
    net = DigitsMLP().net
    persistence = Persistence(every_n_steps=min(100, steps))
    probes = [StepRatio(), Distortion(every_n_steps=10), persistence, Sharpness(every_n_steps=10)]
    return train(net, squared_error, FullBatch(digits(), steps), setting.make, probes=probes)


def first_at(run: Run, name: str, level: float = 1.0) -> int | None:
    """The first step from 10 on, when Adam's moments have settled, at which a quantity is at `level` or more."""
    steps, values = run.series(name)
    found = steps[(values >= level) & (steps >= 10)]
    return int(found[0]) if len(found) else None


def row(setting: Setting, runs: list[Run]) -> Row:
    """One setting, over its seeds."""
    ratios = [run.series("sharpness_ratio") for run in runs]
    first = [first_at(run, "sharpness_ratio") for run in runs]
    late = [
        float(np.median(values[steps >= at + 50]))
        for (steps, values), at in zip(ratios, first, strict=True)
        if at is not None and (steps >= at + 50).any()
    ]
    past = [first_at(run, "eta_lambda") for run in runs]
    r = [run.series("r")[1] for run in runs]
    return {
        "run": setting.name,
        "ratio at step 10": spread([float(v[s == 10][0]) for s, v in ratios]),
        "largest from step 10 on": spread([float(v[s >= 10].max()) for s, v in ratios]),
        "ratio first >= 1 at step": spread([at for at in first if at is not None]) if any(first) else None,
        "median from 50 steps later": spread(late) if late else None,
        "eta_lambda first >= 1 at step": spread([a for a in past if a is not None]) if None not in past else None,
        "r, first step": spread([float(v[0]) for v in r]),
        "r, largest": spread([float(v.max()) for v in r]),
        "r, last": spread([float(v[-1]) for v in r]),
        "a since start": spread([float(run.series("total_contraction", worst=min)[1][-1]) for run in runs]),
        "b since start": spread([float(run.series("total_expansion")[1][-1]) for run in runs]),
        "b0, sum over both layers, first capture to last": " to ".join(
            spread([float(run.series("betti_0", worst=_total)[1][at]) for run in runs]) for at in (0, -1)
        ),
        "loss at the end": spread([float(run.loss[1][-1]) for run in runs]),
    }


def _total(values: list[float]) -> float:
    return sum(values)


def draw(trials: dict[Setting, list[Run]]) -> Figure:
    """A column an optimizer; rows: phases, loss, sharpness ratio, r, distances since the start, Betti numbers."""
    figure = drawing.figure(7.2)
    optimizers = tuple(dict.fromkeys(setting.optimizer for setting in trials))
    ratios = [0.16, 0.16, 1.0, 1.0, 1.0, 1.0]
    axes = figure.subplots(6, len(optimizers), sharex="col", height_ratios=ratios)
    for column, optimizer in enumerate(optimizers):
        chosen = [setting for setting in trials if setting.optimizer == optimizer]
        for place, setting in enumerate(chosen):
            colour, style = ((drawing.SERIES[0], "-"), (drawing.MUTED, (0, (4, 1.5))))[setting.is_control]
            runs = trials[setting]
            last = int(runs[0].loss[0][-1])
            drawing.phase_ribbon(axes[place, column], runs[0].phases, last)
            axes[place, column].set_ylabel(f"{setting.lr:g}", rotation=0, ha="right", va="center", color=colour)
            quantities = ("loss", "sharpness_ratio", "r", "total_expansion")
            for ax, name in zip(axes[2:, column], quantities, strict=True):
                drawing.band(ax, *stacked(runs, name), colour, f"lr {setting.lr:g}", linestyle=style)
        axes[0, column].set_title("Full-batch gradient descent" if optimizer == "GD" else optimizer)
        loss, ratio, r, stretch = axes[2:, column]
        drawing.log_axis(loss)
        ratio.set_ylim(0, 1.5)
        drawing.critical_line(ratio, "edge of stability")
        drawing.log_axis(r, 1e-5, 4.0)
        drawing.critical_line(r, "r = 1")
        drawing.log_axis(stretch, 0.9, None)
        stretch.set(xlabel="optimizer step", xlim=(0, min(setting.steps for setting in chosen)))
        loss.legend(loc="upper right", ncols=2)
    labels = (
        "training loss",
        "sharpness ratio",
        "critical ratio r\n(worst layer)",
        "largest expansion\nsince the start",
    )
    for ax, label in zip(axes[2:, 0], labels, strict=True):
        ax.set_ylabel(label)
    shown = (Phase.PRESERVED, Phase.UNPROTECTED, Phase.EDGE_OF_STABILITY, Phase.BREAKDOWN)
    figure.legend(handles=drawing.phase_handles(shown), loc="outside upper center", ncols=4)
    return figure


def measure(small: bool) -> dict[Setting, list[Run]]:
    """Every training, of three seeds, the controls of one; small: few steps, one seed."""
    seeds = {setting: range(1 if small or setting.is_control else 3) for setting in SETTINGS}
    return {s: [trial(s, seed, 12 if small else s.steps) for seed in seeds[s]] for s in SETTINGS}


def present(trials: dict[Setting, list[Run]]) -> Outcome:
    """The evidence in them."""
    n = len(trials[SETTINGS[0]])
    caption = f"Ranges are those of {n} seed{'s' * (n > 1)}. Sharpness is measured every 10 steps, r at every step."
    return Outcome(
        "Sharpness beside topology, up to the edge of stability",
        {"": draw(trials)},
        [Table(caption, [row(setting, runs) for setting, runs in trials.items()])],
        {
            "network": "64-64-64-10, tanh, torch's default initialisation",
            "data": "the first 500 of scikit-learn's digits, mean squared error, full batch",
            "phase ribbons": "of the first seed",
        },
    )
