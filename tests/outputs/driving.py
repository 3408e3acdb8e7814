"""A made-up training that goes through the outputs as the engine sends it: the outputs' own tests need no trainer."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lightning_topo._figures import persistence as persistence_figures
from lightning_topo._figures.style import new_figure
from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import Readings
from lightning_topo.homology import persistence
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.outputs._outputs import Outputs, open_outputs
from lightning_topo.phases import DetectorState, TopologyEvent, observe

SETTINGS = {"probes": [{"name": "distortion", "class": "Distortion"}], "seed": 0}


def group_named(name: str, n: int = 8) -> NeuronGroup:
    return NeuronGroup(name, "unit", n, (), (ParamSlice("net.0.weight", (), (0,)),), "verified")


GROUPS = (group_named("net.0"), group_named("net.3"))


@dataclass
class Training:
    """Steps of `groups` from `first` on: quiet, or with a breakdown at each step of `hot`."""

    outputs: Outputs
    groups: tuple[NeuronGroup, ...] = GROUPS
    log_groups: object = "all"
    log_every: int = 1
    hot: frozenset[int] = frozenset()
    seed: int = 0
    step: int = 0
    readings: Readings = field(init=False)
    state: DetectorState = field(default_factory=DetectorState)
    measured: list[Measurement] = field(default_factory=list)
    events: list[TopologyEvent] = field(default_factory=list)
    rows: list[Measurement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.readings = Readings([group.name for group in self.groups], self.log_groups)
        self._draw = random.Random(self.seed)
        self._phase = None
        self._started = False

    def run(self, n_steps: int) -> "Training":
        for _ in range(n_steps):
            self.step += 1
            self._step()
        return self

    def _step(self) -> None:
        step, draw = self.step, self._draw
        epoch = (step - 1) // 8
        if not self._started:
            self._started = True
            self.outputs.start(Run(self.groups, self.readings, SETTINGS, step, epoch, {"lr": 0.1}))
        self._send(Measurement(step, epoch, "training", GLOBAL, {"loss": 1.0 / step, "learning_rate": 0.1}))
        shares = {"coverage": 1.0, "coverage_span": 1.0}
        self.readings.take(Measurement(step, epoch, "coverage", GLOBAL, shares))
        self.readings.take(Measurement(step, epoch, "training", GLOBAL, {"critical_learning_rate": 0.2}))
        for group in self.groups:
            r = draw.uniform(0.001, 0.9) if step not in self.hot else 1.0 + draw.random()
            values = {"critical_ratio": r, "contraction": max(1 - r, 0.0), "expansion": 1 + r, "critical_i": 3.0}
            values |= {"total_contraction": 1 - 0.01 * step, "total_expansion": 1 + step, "distinct_neurons": 8.0}
            self._send(Measurement(step, epoch, "distortion", group.name, values | {"log_distortion": math.log1p(r)}))
        if step % 4 == 0:
            sharp = {"sharpness": 2.0 + step, "sharpness_ratio": 0.1, "eta_lambda": 0.2, "residual": 0.01}
            self._send(Measurement(step, epoch, "sharpness", GLOBAL, sharp))
        if step % 8 == 0:
            cloud = torch.randn(12, 3, generator=torch.Generator().manual_seed(step))
            diagrams = {group.name: persistence(cloud, 1) for group in self.groups}
            for group in self.groups:
                values = {
                    "betti_0": float(step % 5),
                    "betti_1": 1.0,
                    "total_persistence_0": 2.0,
                    "log_bottleneck_0": 0.1,
                    "log_bottleneck_1": 0.1,
                }
                self._send(Measurement(step, epoch, "persistence", group.name, values | {"log_bottleneck_bound": 0.2}))
            self.outputs.diagrams(step, diagrams)
        if (phase := float(self.state.phase)) != self._phase:
            self._phase = phase
            found = Measurement(step, epoch, "phase", GLOBAL, {"phase": phase, "overhead": 0.01})
            self.readings.take(found)
            self.outputs.measurement(found)
        if step % self.log_every == 0:
            self.readings.take(Measurement(step, epoch, "phase", GLOBAL, {"phase": phase, "overhead": 0.01}))
            row = self.readings.row(step, epoch)
            self.rows.append(row)
            self.outputs.measurement(row)

    def _send(self, measurement: Measurement) -> None:
        self.measured.append(measurement)
        self.readings.take(measurement)
        self.outputs.measurement(measurement)
        self.state, events = observe(self.state, measurement)
        for event in events:
            self.events.append(event)
            self.outputs.event(event)


@contextmanager
def empty_figures() -> Iterator[None]:
    """The figures of a run, empty: a hundred of them need not be drawn in full."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("diagram_figure", "betti_figure", "crocker_figure"):
            patch.setattr(persistence_figures, name, lambda *_: new_figure(1, "", width=1.0, height=0.6)[0])
        yield


def drive(
    folder: Path, n_steps: int = 16, *, hot: object = (), loggers: object = (), in_haste=False, **options
) -> Training:
    """A whole run into a folder; `options` are `open_outputs`'s and `Training`'s."""
    ours = {name: options.pop(name) for name in ("groups", "log_groups", "log_every", "seed") if name in options}
    outputs = open_outputs(folder, loggers=list(loggers), **({"report": False, "verbose": False} | options))
    training = Training(outputs, hot=frozenset(hot), step=options.get("step", 0), **ours).run(n_steps)
    outputs.end(in_haste=in_haste)
    return training
