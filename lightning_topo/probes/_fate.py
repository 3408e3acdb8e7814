"""Measure the fate of every group's neurons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_topo._keywords import explains_keywords
from lightning_topo.geometry._fate import ALIGNMENT, INDEPENDENCE, VANISHING, NeuronFate, neuron_fate
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._group import clean_name
from lightning_topo.probes._period import Period
from lightning_topo.probes._probe import Capture, ProbeResult, blocks

_MOST_SIZES = 8
"""Of sets of equal neurons the record holds the sizes of so many, the largest."""


@explains_keywords
@dataclass(frozen=True, slots=True)
class Fate:
    """Counts the neurons of every group that are independent, vanish, align or have merged.

    Values of each group, summed over its blocks:

    - `independent_neurons`: the number of neurons kept if, from the longest to the shortest, a neuron is kept when it
      is independent (see `independence`) of all those kept before it;
    - `vanishing_neurons`: the number of neurons far smaller than the largest one of their block (see `vanishing`);
    - `aligned_clusters`: the number of directions of the incoming weights, nearly parallel ones (see `alignment`)
      counted once. Absent if the group has no incoming weights, or parameters lie in flat shards;
    - `effective_neurons`: the participation ratio (Σ λ)² / Σ λ² of the eigenvalues λ of the cloud's covariance;
    - `largest_multiplicity`: the size of the largest set of neurons equal up to rounding, 1 if none are. This is the
      largest over the blocks, not their sum;
    - in the record alone: `multiplicity_k`, the size of the k-th largest set of neurons equal up to rounding, for the
      eight largest sets of two or more; `merged_classes` and `merged_neurons`, how many such sets there are in all
      blocks, and how many neurons they hold. What these have beyond `multiplicity_1` to `multiplicity_8` is in smaller
      sets;
    - in the record alone: `measured_neurons`, how many neurons were counted, and at the first measurement
      `vanishing_neurons_at_start` and `aligned_clusters_at_start`, the two counts when training began.

    Args:
        every_n_epochs: The period in epochs; "auto" begins with every epoch.
        every_n_steps: The period in optimizer steps, in place of epochs; "auto" begins with every 100th step.
        independence: Neurons a and b are independent if 2|a - b|² / (|a|² + |b|²) is at least this, in (0, 2).
        vanishing: A neuron vanishes if its norm is below this share of its block's largest norm, in (0, 1).
        alignment: Two neurons align if the cosine of their incoming weights is above this, in (-1, 1).
        max_neurons: In a larger block only this many neurons are counted: a random sample, the same every time. None
            counts all.

    Raises `ValueError` if a number is out of its range, or both periods are given.

    >>> Fate().period, Fate(every_n_steps=20).period.unit
    (Period(every=1, unit='epoch', adaptive=True), 'step')
    """

    every_n_epochs: int | Literal["auto"] = "auto"
    every_n_steps: int | Literal["auto"] | None = None
    independence: float = INDEPENDENCE
    vanishing: float = VANISHING
    alignment: float = ALIGNMENT
    max_neurons: int | None = 8192
    name: str = field(default="fate", init=False, repr=False)
    by_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.every_n_steps is not None and self.every_n_epochs != "auto":
            raise ValueError(
                f"expected every_n_epochs or every_n_steps, got both ({self.every_n_epochs!r} and "
                f"{self.every_n_steps!r}): leave one out"
            )
        _ = self.period
        if not 0.0 < self.independence < 2.0:
            raise ValueError(f"expected 0 < independence < 2, got {self.independence}")
        if not 0.0 < self.vanishing < 1.0:
            raise ValueError(f"expected 0 < vanishing < 1, got {self.vanishing}")
        if not -1.0 < self.alignment < 1.0:
            raise ValueError(f"expected -1 < alignment < 1, got {self.alignment}")
        if self.max_neurons is not None and self.max_neurons < 1:
            raise ValueError(f"expected max_neurons >= 1, got {self.max_neurons}")

    @property
    def period(self) -> Period:
        """How often the probe measures: from `every_n_steps` if that is given, else from `every_n_epochs`."""
        if self.every_n_steps is not None:
            return Period.parse(self.every_n_steps, default=100)
        return Period.parse(self.every_n_epochs, default=1, unit="epoch")

    def measure(self, capture: Capture) -> ProbeResult:
        """Count the neurons of each group, block by block.

        A group that cannot be counted (NaN or infinite weights) is in the result's `failures`, with the reason.
        """
        values: dict[str, dict[str, float]] = {}
        failures: dict[str, str] = {}
        for group in capture.groups:
            try:
                cloud = capture.neurons[group.name]
                columns = incoming_columns(group, capture.module, cloud.shape[1], capture.optimizers)
                values[group.name] = self._of_group(cloud, group, columns)
                first = capture.reference.get(group.name) if capture.previous is None else None
                if first is not None and first.shape == cloud.shape:
                    values[group.name] |= _at_start(self._of_group(first.to(cloud), group, columns))
            except (ValueError, TypeError) as error:
                failures[group.name] = str(error)
        return ProbeResult(values, failures)

    def _of_group(self, cloud: Tensor, group: NeuronGroup, columns: Tensor | None) -> dict[str, float]:
        return _summary([self._of_block(block, columns) for block in blocks(cloud, group)])

    def _of_block(self, cloud: Tensor, columns: Tensor | None) -> NeuronFate:
        return neuron_fate(
            cloud,
            None if columns is None else cloud[:, columns.to(cloud.device)],
            independence=self.independence,
            vanishing=self.vanishing,
            alignment=self.alignment,
            max_neurons=self.max_neurons,
        )


def incoming_columns(
    group: NeuronGroup, module: nn.Module, width: int, optimizers: Sequence[torch.optim.Optimizer] = ()
) -> Tensor | None:
    """The columns of a cloud of `width` coordinates that hold incoming weights; None where there are none.

    A cloud holds whole neurons; or what the optimizers train of them, or, where these hold other tensors than the
    module, what requires gradients. None, too, where the parameters' own shapes do not add up to that width: in flat
    shards they have others.
    """
    present = {clean_name(name): p for name, p in module.named_parameters()}
    trained = {name for name, p in present.items() if p.requires_grad}
    owned = {id(p) for optimizer in optimizers for held in optimizer.param_groups for p in held["params"]}
    for names in (present.keys(), {name for name in trained if id(present[name]) in owned}, trained):
        shapes = {name: torch.empty_like(p, device="meta") for name, p in present.items() if name in names}
        columns, found_width = _incoming(group, shapes)
        if columns and found_width == width:
            return torch.tensor(columns)
    return None


def _incoming(group: NeuronGroup, tensors: Mapping[str, Tensor]) -> tuple[list[int], int]:
    """The columns of incoming weights in the cloud of these tensors, and its width."""
    columns: list[int] = []
    width = 0
    try:
        widths = group.widths(tensors)
    except ValueError:
        return [], -1
    for piece, size in widths:
        if piece.role == "incoming":
            columns += range(width, width + size)
        width += size
    return columns, width


def _at_start(values: Mapping[str, float]) -> dict[str, float]:
    """The counts whose change is an event, renamed to `<name>_at_start`."""
    counts = ("vanishing_neurons", "aligned_clusters")
    return {f"{name}_at_start": values[name] for name in counts if name in values}


def _summary(found: Sequence[NeuronFate]) -> dict[str, float]:
    """The values of a group from those of its blocks."""
    values = {
        "independent_neurons": float(sum(fate.independent_neurons for fate in found)),
        "vanishing_neurons": float(sum(fate.vanishing_neurons for fate in found)),
        "effective_neurons": sum(fate.effective_neurons for fate in found),
        "largest_multiplicity": float(max(fate.largest_multiplicity for fate in found)),
        "measured_neurons": float(sum(fate.n_measured for fate in found)),
    }
    clusters = [fate.aligned_clusters for fate in found if fate.aligned_clusters is not None]
    if clusters:
        values["aligned_clusters"] = float(sum(clusters))
    return values | _multiplicity([size for fate in found for size in fate.multiplicity])


def _multiplicity(sizes: Sequence[int]) -> dict[str, float]:
    """The largest of the sizes of all sets of equal neurons, and what all hold together."""
    largest = sorted(sizes, reverse=True)[:_MOST_SIZES]
    values = {"merged_classes": float(len(sizes)), "merged_neurons": float(sum(sizes))}
    return values | {f"multiplicity_{k}": float(size) for k, size in enumerate(largest, start=1)}
