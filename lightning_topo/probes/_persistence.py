"""The persistent homology of every group's neurons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from lightning_topo._keywords import explains_keywords
from lightning_topo._memory import resting_device
from lightning_topo.geometry import step_distortion
from lightning_topo.homology import (
    JobLost,
    PersistenceDiagram,
    RipsTask,
    Worker,
    WorkerBroken,
    betti_number,
    log_bottleneck,
    log_bottleneck_bound,
    max_persistence,
    persistence_entropy,
    rips_task,
    total_persistence,
)
from lightning_topo.homology._engines import ENGINES, rips_intervals
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes._period import Period
from lightning_topo.probes._probe import Capture, Pending, ProbeResult, ProbeUnavailable, ResultLost, blocks

_HIGHEST_DIM = 3


@explains_keywords
@dataclass(frozen=True, slots=True)
class Persistence:
    """Computes the Vietoris-Rips persistence diagram of every group's cloud of neurons, with its summaries.

    Values of each group in each homology dimension k (0: clusters, 1: loops). The first two are summed over the group's
    blocks; the others are the largest value of a block:

    - `betti_k`, the number of features alive at `betti_scale` times the diameter;
    - `total_persistence_k`, the sum of the bars' lengths; here and in the next two, bars that never end are left out;
    - `max_persistence_k`, the length of the longest bar; `entropy_k`, the entropy of the lengths in nats;
    - `log_bottleneck_k`, the bottleneck distance to the previous diagram, in log births and log deaths;
      `log_bottleneck_bound`, an upper bound of it, from how the distances between neurons changed in between (exact
      diagrams only);
    - if landmarks were used: `landmark_error`, which is 2 rho / diameter with rho the covering radius, and
      `vacuous_k`, 1 if a diagram without bars lies within this error, else 0.

    Dimension 0 is always computed from all neurons.

    Args:
        every_n_epochs: The period in epochs; "auto" begins with every epoch.
        every_n_steps: The period in optimizer steps, in place of epochs; "auto" begins with every 100th step.
        max_dim: The highest homology dimension, from 0 to 3.
        max_landmarks: In dimension 1 and up, a larger block is represented by this many of its neurons, chosen as
            farthest points; None uses all.
        betti_scale: The scale of the Betti numbers, as a share of the diameter.
        engine: What computes dimension 1 and up: "giotto-ph", "gudhi" or "redzed-tda"; None takes the first installed.
        lag: 0 computes at once, while training waits. k > 0 computes dimension 1 and up in a worker process and logs
            the result k optimizer steps later, or at the end of the epoch or training if that comes first. The record
            keeps the step at which the neurons were taken.
        timeout: How many seconds to wait for a result of the worker. After that it is given up, with a `gap` event.

    Raises `ValueError` if both periods are given, an engine is unknown, or a number is out of its range.

    >>> Persistence().period, Persistence(every_n_steps=20).period.unit
    (Period(every=1, unit='epoch', adaptive=True), 'step')
    """

    every_n_epochs: int | Literal["auto"] = "auto"
    every_n_steps: int | Literal["auto"] | None = None
    max_dim: int = 1
    max_landmarks: int | None = 512
    betti_scale: float = 0.25
    engine: str | None = None
    lag: int = 0
    timeout: float = 300.0
    name: str = field(default="persistence", init=False, repr=False)
    by_group: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _ = self.period
        if self.every_n_steps is not None and self.every_n_epochs != "auto":
            raise ValueError(
                f"expected every_n_epochs or every_n_steps, got both ({self.every_n_epochs!r} and "
                f"{self.every_n_steps!r}): leave one out"
            )
        if not 0 <= self.max_dim <= _HIGHEST_DIM:
            raise ValueError(
                f"expected max_dim between 0 and {_HIGHEST_DIM}, got {self.max_dim}: the work grows with the power "
                "max_dim + 2 of the number of neurons"
            )
        if self.engine is not None and self.engine not in ENGINES:
            raise ValueError(f"expected engine among {', '.join(ENGINES)} or None, got {self.engine!r}")
        if not self.betti_scale > 0.0:
            raise ValueError(f"expected betti_scale > 0, got {self.betti_scale}")
        if self.lag < 0:
            raise ValueError(f"expected lag >= 0, got {self.lag}")
        if not self.timeout > 0.0:
            raise ValueError(f"expected timeout > 0, got {self.timeout}")

    @property
    def period(self) -> Period:
        """How often the probe measures: from `every_n_steps` if that is given, else from `every_n_epochs`."""
        if self.every_n_steps is not None:
            return Period.parse(self.every_n_steps, default=100)
        return Period.parse(self.every_n_epochs, default=1, unit="epoch")

    def measure(self, capture: Capture) -> ProbeResult | Pending:
        """Compute each group's diagrams, block by block, and their summaries; return a `Pending` if there is a `lag`.

        A group that cannot be computed is in the result's `failures`. Raises `ProbeUnavailable` if the worker process
        cannot go on.
        """
        worker = capture.worker if self.lag > 0 and self.max_dim > 0 and Worker.is_supported() else None
        # The worker computes H0 too, or leaves it to the devices: one or the other for all groups.
        on_cpu = all(p.device.type == "cpu" for p in capture.module.parameters())
        failures: dict[str, str] = {}
        tasks: dict[str, dict[str, _Task]] = {}
        for group in capture.groups:
            try:
                cloud = capture.neurons[group.name]
                tasks[group.name] = self._tasks(cloud, group, leave_h0=worker is not None and on_cpu)
            except ValueError as error:
                failures[group.name] = str(error)
        if worker is not None:
            return self._handed_over(worker, tasks, failures)
        found = [_computed(task.rips) for blocks in tasks.values() for task in blocks.values()]
        return self._result(tasks, found, failures, capture.previous)

    def _tasks(self, cloud: Tensor, group: NeuronGroup, *, leave_h0: bool) -> "dict[str, _Task]":
        clouds = blocks(cloud, group)
        names = [group.name] if len(clouds) == 1 else [f"{group.name}[{b}]" for b in range(len(clouds))]
        how = (self.max_dim, self.max_landmarks, self.engine)
        tasks = {name: rips_task(points, *how, leave_h0=leave_h0) for name, points in zip(names, clouds, strict=True)}
        # Only what has an exact diagram is compared with the next capture; till then it rests.
        resting = resting_device(cloud.device)
        return {
            name: _Task(points.to(resting) if task.n_landmarks == task.n_points else None, task)
            for (name, task), points in zip(tasks.items(), clouds, strict=True)
        }

    def _handed_over(
        self, worker: Worker, tasks: "Mapping[str, Mapping[str, _Task]]", failures: Mapping[str, str]
    ) -> Pending:
        each = [task.rips for blocks in tasks.values() for task in blocks.values()]
        matrices = [rips.distances for rips in each if rips.distances is not None]
        spanning = any(rips.deaths is None for rips in each)
        engine = each[0].engine if each else ""
        try:
            job = worker.submit(matrices, self.max_dim, engine, spanning=spanning)
        except WorkerBroken as error:
            remedy = (
                "Persistence(lag=0) computes in the training process; Persistence(engine=...) names another engine."
            )
            raise ProbeUnavailable(str(error), remedy) from error
        # Without the distances: many captures may wait.
        kept = {
            group: {name: _Task(task.points, task.rips.handed_over()) for name, task in found.items()}
            for group, found in tasks.items()
        }

        def collect(previous: ProbeResult | None, most_seconds: float | None) -> ProbeResult:
            try:
                found = worker.collect(job, self.timeout if most_seconds is None else most_seconds)
            except JobLost as error:
                raise ResultLost(str(error)) from error
            return self._result(kept, found, failures, previous)

        return Pending(self.lag, collect)

    def _result(
        self,
        tasks: "Mapping[str, Mapping[str, _Task]]",
        found: "Sequence[Sequence[np.ndarray] | RuntimeError]",
        failures: Mapping[str, str],
        previous: ProbeResult | None,
    ) -> ProbeResult:
        """`found` holds the intervals of all blocks of all groups, in the order of `tasks`."""
        values: dict[str, Mapping[str, float]] = {}
        failed = dict(failures)
        diagrams: dict[str, PersistenceDiagram] = {}
        seen: Mapping[str, _Block] = {} if previous is None else previous.carry
        carry = dict(seen)
        left = iter(found)
        for group, blocks_of in tasks.items():
            now: dict[str, _Block] = {}
            for (name, task), intervals in zip(blocks_of.items(), left):  # noqa: B905 - the next group goes on with it
                if isinstance(intervals, RuntimeError):
                    failed[group] = str(intervals)
                else:
                    now[name] = _Block(task.points, task.rips.diagram(intervals))
            if group in failed:
                continue
            values[group] = self._summaries(list(now.values())) | self._change(seen, now)
            diagrams |= {name: block.diagram for name, block in now.items()}
            carry |= now
        return ProbeResult(values, failed, diagrams, carry)

    def _summaries(self, found: "list[_Block]") -> dict[str, float]:
        diagrams = [block.diagram for block in found]
        values: dict[str, float] = {}
        for k in range(self.max_dim + 1):
            values[f"betti_{k}"] = float(
                sum(betti_number(diagram, k, self.betti_scale * diagram.diameter) for diagram in diagrams)
            )
            values[f"total_persistence_{k}"] = sum(total_persistence(diagram, k) for diagram in diagrams)
            values[f"entropy_{k}"] = max(persistence_entropy(diagram, k) for diagram in diagrams)
            values[f"max_persistence_{k}"] = max(max_persistence(diagram, k) for diagram in diagrams)
        subsampled = [diagram for diagram in diagrams if not diagram.exact]
        if subsampled:
            values["landmark_error"] = max(diagram.landmark_error for diagram in subsampled)
            for k in range(1, self.max_dim + 1):
                values[f"vacuous_{k}"] = float(any(diagram.is_vacuous(k) for diagram in subsampled))
        return values

    def _change(self, before: "Mapping[str, _Block]", now: "Mapping[str, _Block]") -> dict[str, float]:
        """How far the diagrams moved since the previous capture, the worst block's; nothing if they are others."""
        if not all(name in before and _are_same(before[name], block) for name, block in now.items()):
            return {}
        values = {
            f"log_bottleneck_{k}": max(
                log_bottleneck(before[name].diagram, block.diagram, k) for name, block in now.items()
            )
            for k in range(self.max_dim + 1)
        }
        if all(block.diagram.exact for block in now.values()):
            values["log_bottleneck_bound"] = max(_bound(before[name], block) for name, block in now.items())
        return values


@dataclass(frozen=True, slots=True)
class _Block:
    """A block's diagram, with its cloud where that is exact, kept for the comparison with the next."""

    points: Tensor | None
    diagram: PersistenceDiagram


@dataclass(frozen=True, slots=True)
class _Task:
    """What is known of a block's diagram so far, with its cloud where that will be exact."""

    points: Tensor | None
    rips: RipsTask


def _are_same(before: _Block, now: _Block) -> bool:
    """Whether a block has as many neurons, and these as many coordinates, as before: layers may grow and shrink."""
    clouds = [block.points for block in (before, now) if block.points is not None]
    return before.diagram.n_points == now.diagram.n_points and len({cloud.shape for cloud in clouds}) <= 1


def _bound(before: _Block, now: _Block) -> float:
    """The most that the diagram can have moved: infinite where a cloud was not kept."""
    if before.points is None or now.points is None:
        return math.inf
    device = now.diagram[0].deaths.device
    return log_bottleneck_bound(step_distortion(before.points.to(device), now.points.to(device)))


def _computed(task: RipsTask) -> list[np.ndarray] | RuntimeError:
    """The intervals of dimension 1 and up, here and now; the engine's error where it fails."""
    if task.distances is None:
        return []
    try:
        return rips_intervals(task.distances, task.max_dim, task.engine)
    except RuntimeError as error:
        return error
