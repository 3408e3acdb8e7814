"""Frames and figures of a record, as methods."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lightning_topo._figures.captures import CapturedDiagram, Pairs, bars, by_blocks, crocker, spread
from lightning_topo._figures.coverage import broken_over_open, stretches, uncovered
from lightning_topo._figures.rates import rate_limits
from lightning_topo._figures.style import abbreviated
from lightning_topo._notebook.frames import diagrams_frame, events_frame, measurements_frame, phases_frame
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import EdgeSource, Phase, TopologyEvent, replay_record
from lightning_topo.quantities import QUANTITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lightning_topo.homology import PersistenceDiagram

_MOST_CAPTURES = 160
"""The most captures drawn: a figure has no room for more."""
_N_SCALES = 80
_MOST_COMPARED = 32
"""Compare at most this many captures with one another."""


@runtime_checkable
class Recorded(Protocol):
    """What `RecordViews` needs of a record."""

    @property
    def dirpath(self) -> Path: ...
    @property
    def measurements(self) -> tuple[Measurement, ...]: ...
    @property
    def events(self) -> tuple[TopologyEvent, ...]: ...
    @property
    def diagram_steps(self) -> tuple[int, ...]: ...
    @property
    def groups(self) -> tuple[str, ...]: ...
    @property
    def thinned(self) -> object | None: ...
    def diagrams(self, step: int) -> "Mapping[str, PersistenceDiagram]": ...
    def captured(self, step: int) -> Mapping[str, CapturedDiagram]: ...


class RecordViews:
    """Data frames and figures of a run's record, as methods.

    Data frames need pandas (`pip install "lightning-topo[notebook]"`); without it they raise `ImportError`. A figure
    raises `ValueError` if the quantity it shows was not measured. `group` is by default the group with the largest
    critical ratio.
    """

    __slots__ = ()

    def measurements_frame(self: Recorded) -> "DataFrame":
        """Return a row for each measurement: step, epoch, probe, group, and a column per quantity."""
        return measurements_frame(self.measurements)

    def events_frame(self: Recorded) -> "DataFrame":
        """Return a row for each event: name, step, epoch, group, severity, value, threshold, message, remedy."""
        return events_frame(self.events)

    def phases_frame(self: Recorded) -> "DataFrame":
        """Return a row for each change of phase of the network ("") or a group: step, group, phase, name."""
        return phases_frame(_phases(self))

    def diagrams_frame(self: Recorded, steps: Sequence[int] | None = None) -> "DataFrame":
        """Return a row for each bar of the diagrams captured at `steps` (by default at all `diagram_steps`)."""
        return diagrams_frame({step: self.captured(step) for step in (self.diagram_steps if steps is None else steps)})

    def plot_phases(self: Recorded) -> "Figure":
        """Plot the phase of the network and of every group against the step, with a mark for every event."""
        from lightning_topo._figures.training import NETWORK, phases_figure

        if not self.measurements:
            raise ValueError(_nothing(self, "measurements"))
        phases = _phases(self)
        rows = {NETWORK: phases[GLOBAL]} | {group: phases.get(group, ()) for group in self.groups}
        last = max(m.step for m in self.measurements)
        return phases_figure(rows, sorted({event.step for event in self.events}), last, "Phases")

    def plot_critical_ratio(self: Recorded) -> "Figure":
        """Plot the critical ratio r of every group against the step, on a log scale, with the critical point at 1.

        The lines are interrupted at open steps, of which nothing is known.
        """
        from lightning_topo._figures.training import ratio_figure

        covered = stretches(self.measurements)
        found = {
            group: broken_over_open(_series(self, group, "critical_ratio"), covered.get(group, ()))
            for group in self.groups
        }
        if not any(found.values()):
            raise ValueError(_nothing(self, "critical ratios"))
        return ratio_figure({group: series for group, series in found.items() if series}, "Critical ratio by group")

    def plot_stability(self: Recorded) -> "Figure":
        """Plot the loss, the edge ratios (1 at the edge of stability) and `eta_lambda` against the step.

        The ratios of single steps, which are noisy, are drawn only where there are no others.
        """
        from lightning_topo._figures.training import stability_figure

        loss, bound = (_series(self, GLOBAL, name) for name in ("loss", "eta_lambda"))
        found = {source: _series(self, GLOBAL, source.quantity) for source in EdgeSource}
        shown = {source: series for source, series in found.items() if series}
        if not loss and not shown:
            raise ValueError(_nothing(self, "losses and edge ratios"))
        known = {source: series for source, series in shown.items() if source.knows_threshold}
        ratios = {QUANTITIES[source.quantity].title.lower(): series for source, series in (known or shown).items()}
        return stability_figure(loss, ratios, bound, "Loss and edge of stability")

    def plot_learning_rate(self: Recorded) -> "Figure":
        """Plot the learning rate by step, with the rates at which r, the edge ratio and `eta_lambda` would be 1."""
        from lightning_topo._figures.training import rates_figure

        limits = rate_limits(self.measurements)
        if not limits.used:
            raise ValueError(_nothing(self, "learning rates"))
        last = max(m.step for m in self.measurements)
        return rates_figure(
            replace(limits, used=(*limits.used, (last, limits.used[-1][1]))), "Learning rate and limits"
        )

    def plot_distortion(self: Recorded, group: str | None = None) -> "Figure":
        """Plot a group's contraction and expansion against the step, since training began and in each step."""
        from lightning_topo._figures.training import distortion_figure

        group = _chosen(self, group)
        names = ("contraction", "expansion", "total_contraction", "total_expansion")
        low, high, total_low, total_high = (_series(self, group, name) for name in names)
        if not high and not total_high:
            raise ValueError(_nothing(self, f"distortion of {group}"))
        return distortion_figure(
            (low, high), (total_low, total_high), f"{abbreviated(group)}: contraction to expansion"
        )

    def plot_fate(self: Recorded, group: str | None = None) -> "Figure":
        """Plot against the step how many neurons of a group are alive, independent or merged."""
        from lightning_topo._figures.fate import fate_figure

        group = _chosen(self, group)
        captures = {m.step: m.values for m in self.measurements if m.probe == "fate" and m.group == group}
        if not captures:
            raise ValueError(_nothing(self, f"the fate of {group}"))
        return fate_figure(captures, f"{abbreviated(group)}: what becomes of the neurons")

    def plot_diagram(self: Recorded, group: str | None = None, step: int | None = None) -> "Figure":
        """Plot a group's persistence diagram at a step of `diagram_steps`, by default the last."""
        from lightning_topo._figures.persistence import diagram_figure

        group = _chosen(self, group)
        if step is not None and step not in self.diagram_steps:
            raise ValueError(f"expected a step of diagram_steps, got {step}: captured were {self.diagram_steps}")
        steps = self.diagram_steps[-1:] if step is None else (step,)
        captures = _captures(self, group, steps)
        [(at, pairs)] = captures.items()
        found = by_blocks(self.captured(at), self.groups)[group]
        nothing = any(d.is_vacuous(k) for d in found for k in range(1, d.max_dim + 1))
        error = max(d.landmark_error for d in found)
        return diagram_figure(pairs, f"{abbreviated(group)}: persistence diagram at step {at:,}", error, nothing)

    def plot_change(self: Recorded, group: str | None = None) -> "Figure":
        """Plot the log-bottleneck distance between the diagrams of each two captures of a group, as a map."""
        from lightning_topo._figures.change import capture_distances, distances_figure

        group = _chosen(self, group)
        steps = spread(self.diagram_steps, _MOST_COMPARED)
        found = {step: by_blocks(self.diagrams(step), self.groups).get(group, []) for step in steps}
        captures = {step: blocks for step, blocks in found.items() if blocks}
        if len(captures) < 2:
            raise ValueError(_nothing(self, f"two persistence diagrams of {group}"))
        dims = range(max(block.max_dim for blocks in captures.values() for block in blocks) + 1)
        distances = [capture_distances(list(captures.values()), k) for k in dims]
        return distances_figure(list(captures), distances, f"{abbreviated(group)}: change of shape")

    def plot_entropy(self: Recorded, group: str | None = None) -> "Figure":
        """Plot a group's persistence entropies against the largest critical ratio since the capture before."""
        from lightning_topo._figures.change import entropy_figure

        group = _chosen(self, group)
        entropies = {k: series for k in range(8) if (series := _series(self, group, f"entropy_{k}"))}
        if not entropies:
            raise ValueError(_nothing(self, f"persistence entropies of {group}"))
        ratios = _series(self, group, "critical_ratio")
        return entropy_figure(ratios, entropies, f"{abbreviated(group)}: entropy against r")

    def plot_betti_curves(self: Recorded, group: str | None = None) -> "Figure":
        """Plot a group's Betti numbers against the scale, at a few captures from the first to the last."""
        from lightning_topo._figures.persistence import betti_figure

        group = _chosen(self, group)
        figure = betti_figure(
            _captures(self, group, spread(self.diagram_steps, _MOST_CAPTURES)), f"{abbreviated(group)}: Betti curves"
        )
        if figure is None:
            raise ValueError(f"expected neurons that differ, got a cloud of {group} in which all are one point")
        return figure

    def plot_crocker(self: Recorded, group: str | None = None) -> "Figure":
        """Plot a group's CROCKER matrix: Betti numbers as colour, for each step and scale."""
        from lightning_topo._figures.persistence import crocker_figure

        group = _chosen(self, group)
        table = crocker(_captures(self, group, spread(self.diagram_steps, _MOST_CAPTURES)), _N_SCALES)
        if table is None:
            raise ValueError(f"expected neurons that differ, got a cloud of {group} in which all are one point")
        return crocker_figure(table, f"{abbreviated(group)}: CROCKER plot")


def _phases(record: Recorded) -> Mapping[str, tuple[tuple[int, Phase], ...]]:
    phases = replay_record(record.measurements, record.events, complete=record.thinned is None).phases
    return uncovered(phases, stretches(record.measurements))


def _series(record: Recorded, group: str, name: str) -> list[tuple[int, float]]:
    found = [(m.step, m.values[name]) for m in record.measurements if m.group == group and name in m.values]
    return sorted(found, key=lambda point: point[0])


def _chosen(record: Recorded, group: str | None) -> str:
    """The group asked for, or the one whose critical ratio went highest."""
    if not record.groups:
        raise ValueError(_nothing(record, "groups of neurons"))
    if group is None:
        peaks = dict.fromkeys(record.groups, -math.inf)
        for m in record.measurements:
            # A comparison with NaN is false: NaN never becomes the peak.
            if m.group in peaks and m.values.get("critical_ratio", -math.inf) > peaks[m.group]:
                peaks[m.group] = m.values["critical_ratio"]
        return max(peaks, key=lambda name: peaks[name])
    if group not in record.groups:
        raise ValueError(f"expected a group of {', '.join(record.groups)}, got {group!r}")
    return group


def _captures(record: Recorded, group: str, steps: Sequence[int]) -> dict[int, tuple[Pairs, ...]]:
    """The bars of a group by step."""
    found = {step: by_blocks(record.captured(step), record.groups).get(group) for step in steps}
    captures = {step: bars([block.pairs for block in blocks]) for step, blocks in found.items() if blocks}
    if not captures:
        raise ValueError(_nothing(record, f"persistence diagrams of {group}"))
    return captures


def _nothing(record: Recorded, what: str) -> str:
    return f"expected {what} in the record, found none in {record.dirpath}: is their probe on, and has it measured?"
