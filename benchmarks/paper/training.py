"""Train a network under a `TopologyMonitor`, and hand back what it saw."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_topo import (
    Phase,
    RunRecord,
    TopologyEvent,
    TopologyMonitor,
    declare_neurons,
    read_record,
    step_distortion,
)
from lightning_topo.probes import Period

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Series = tuple[np.ndarray, np.ndarray]
"""Steps, and a value at each."""

# A loss so far above where it began will not come back.
_DIVERGED = 1e3


@dataclass(frozen=True, slots=True)
class Run:
    """One training: its record, its phases by step, and the clouds kept on the way."""

    record: RunRecord
    phases: Sequence[tuple[int, Phase]]
    clouds: Mapping[int, Mapping[str, Tensor]]
    diverged: bool

    def series(self, name: str, group: str | None = None, worst: Callable[..., float] = max) -> Series:
        """A measured quantity over steps: of one group, or the worst of all."""
        found: dict[int, list[float]] = {}
        for m in self.record.measurements:
            if name in m.values and group in (None, m.group):
                found.setdefault(m.step, []).append(m.values[name])
        steps = sorted(found)
        return np.array(steps, dtype=int), np.array([worst(found[step]) for step in steps], dtype=float)

    @property
    def loss(self) -> Series:
        """The training loss before each step."""
        return self.series("loss")

    @property
    def events(self) -> tuple[TopologyEvent, ...]:
        """What happened."""
        return self.record.events


def train(
    net: nn.Module,
    loss: Loss,
    batches: Dataset[Any],
    optimizer: MakeOptimizer,
    *,
    probes: Sequence[Any],
    keep: Collection[int] = (),
    schedule: Callable[[int], float] | None = None,
    neurons: Mapping[str, int] | None = None,
    still: int = 0,
) -> Run:
    """One pass over `batches`, a step each. `keep` are the steps after which the neurons are kept; 0 is the start.

    `neurons` names them by hand, as axes of the network's parameters; by default they are found. With `still` the first
    batches are steps at learning rate 0, since probes measure behind a step: what they find there is step 0, the start.
    """
    watch = _Watch(keep=frozenset(step + still for step in keep))
    module = Learner(net, loss, optimizer, _delayed(schedule, still) if still else schedule)
    axes = {f"net.{parameter}": axis for parameter, axis in (neurons or {}).items()}
    with tempfile.TemporaryDirectory() as folder, _Silence():
        monitor = TopologyMonitor(
            probes=probes,
            groups=declare_neurons(module, "hidden", axes) if axes else "auto",
            dirpath=folder,
            max_overhead=None,
            report=False,
            on_error="raise",
            verbose=False,
        )
        watch.monitor = monitor
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[monitor, watch],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
        assert monitor.dirpath is not None
        record = read_record(monitor.dirpath)
    phases = [(max(step - still, 0), phase) for step, phase in watch.phases]
    clouds = {step - still: found for step, found in watch.clouds.items()}
    return Run(_from_step(record, still) if still else record, phases, clouds, watch.diverged)


def _delayed(schedule: Callable[[int], float] | None, still: int) -> Callable[[int], float]:
    """The factor of the learning rate where the training proper begins after `still` steps."""
    return lambda k: 0.0 if k < still else 1.0 if schedule is None else schedule(k - still)


def _from_step(record: RunRecord, still: int) -> RunRecord:
    """The record counted from step `still`, of which only what was measured on the network itself is kept."""
    kept = [
        replace(m, step=m.step - still)
        for m in record.measurements
        if m.step > still or (m.step == still and m.probe in ("sharpness", "close_pairs"))
    ]
    events = [replace(event, step=event.step - still) for event in record.events if event.step >= still]
    return replace(record, measurements=tuple(kept), events=tuple(events))


class StepRatio:
    """r of every step and nothing else, the worst group's, as `r`: half of what `Distortion` costs.

    It holds for groups of a single block.
    """

    name = "step_ratio"
    period = Period(1)
    measures_steps = True

    def measure(self, capture: Any) -> Mapping[str, float]:
        steps = [(capture.before[group.name], capture.neurons[group.name]) for group in capture.groups]
        return {"r": max(step_distortion(before, now).critical_ratio for before, now in steps)}


class Learner(L.LightningModule):
    """A network and its loss; `schedule` gives the factor of the learning rate at every step."""

    def __init__(
        self, net: nn.Module, loss: Loss, optimizer: MakeOptimizer, schedule: Callable[[int], float] | None = None
    ) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer, self.schedule = net, loss, optimizer, schedule

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass
class _Watch(L.Callback):
    """Keeps what the record does not: phases by step, and whole clouds; ends a training that diverges."""

    keep: frozenset[int] = frozenset()
    monitor: TopologyMonitor | None = None
    phases: list[tuple[int, Phase]] = field(default_factory=list)
    clouds: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    diverged: bool = False
    first_loss: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(0, trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"])
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self._look(batch_idx + 1, trainer, pl_module)
        if not loss < _DIVERGED * self.first_loss:
            self.diverged = trainer.should_stop = True

    def _look(self, step: int, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert self.monitor is not None
        if "topology/phase" in trainer.callback_metrics:
            self.phases.append((step, Phase(int(trainer.callback_metrics["topology/phase"]))))
        if step in self.keep:
            self.kept[step] = {name: p.detach().clone() for name, p in module.named_parameters()}
        # The groups are known after the first step, the weights at the start before it.
        for at in tuple(self.kept) if self.monitor.groups else ():
            parameters = self.kept.pop(at)
            self.clouds[at] = {group.name: group.gather(parameters) for group in self.monitor.groups}


_TALKERS = ("lightning.pytorch", "lightning.fabric", "lightning")


class _Silence(warnings.catch_warnings):
    """Lightning's advice on workers, loggers and devices is not for a benchmark."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module="lightning")
        self._levels = {name: logging.getLogger(name).level for name in _TALKERS}
        for name in _TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        super().__exit__(*exception)


def stacked(runs: Sequence[Run], name: str) -> Series:
    """A quantity of several seeds, a row each, over the steps that all of them have; from the first step on."""
    found = [run.series(name) for run in runs]
    n = min(len(steps) for steps, _ in found)
    steps, values = found[0][0][:n], np.stack([v[:n] for _, v in found])
    return steps[steps > 0], values[:, steps > 0]


def sgd(lr: float, **options: Any) -> MakeOptimizer:
    return partial(torch.optim.SGD, lr=lr, **options)


def adam(lr: float, **options: Any) -> MakeOptimizer:
    return partial(torch.optim.Adam, lr=lr, **options)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed over outputs, mean over samples."""
    return 0.5 * (output - target).square().reshape(len(output), -1).sum(1).mean()
