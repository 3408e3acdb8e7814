"""Which figures are drawn of a run as it goes on, and of which groups of neurons."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_topo._figures.captures import Pairs, bars, by_blocks, crocker
from lightning_topo._figures.fate import Counts
from lightning_topo._figures.style import abbreviated
from lightning_topo._watch.published_values import LogGroups, mangled_names
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CAPTURES = 64
"""Above this many captures every second one is dropped: a figure has no room for more."""
MOST_GROUPS = 12
_N_SCALES = 60


class Drawings:
    """Keeps the captures, and draws of them persistence diagrams, Betti curves, CROCKER plots and the fate of neurons.

    Always drawn is the group whose critical ratio went highest, as `topology/diagram`, `topology/betti_curves`,
    `topology/crocker` and `topology/fate`; with `log_groups` of "all" or patterns also the groups it names, at most 12
    of them, under their own names.
    """

    def __init__(self, groups: Sequence[str], log_groups: LogGroups) -> None:
        self._names, self._log_groups = mangled_names(groups), log_groups
        self._peaks = dict.fromkeys(groups, 0.0)
        self._captures: dict[int, Mapping[str, tuple[Pairs, ...]]] = {}
        self._fates: dict[str, dict[int, Counts]] = {}
        self._errors: dict[str, tuple[float, bool]] = {}
        self._drawn: tuple[int, int] = (-1, -1)

    def measured(self, measurement: Measurement) -> None:
        """Take in a measurement, to know which group is worst, and what becomes of its neurons."""
        if measurement.probe == "fate" and measurement.group in self._names:
            fates = self._fates.setdefault(measurement.group, {})
            fates[measurement.step] = measurement.values
            if len(fates) > MOST_CAPTURES:
                self._fates[measurement.group] = dict(list(fates.items())[::-2][::-1])
        ratio = measurement.values.get("critical_ratio", 0.0)
        # NaN is never larger.
        if measurement.group != GLOBAL and ratio > self._peaks.get(measurement.group, np.inf):
            self._peaks[measurement.group] = ratio

    def captured(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Take in the diagrams of one capture."""
        blocks = by_blocks(diagrams, tuple(self._names))
        self._captures[step] = {
            group: tuple(pairs.astype(np.float32) for pairs in bars([block.to_numpy() for block in found]))
            for group, found in blocks.items()
        }
        self._errors = {
            group: (max(d.landmark_error for d in found), any(map(_says_nothing, found)))
            for group, found in blocks.items()
            if not all(d.exact for d in found)
        }
        if len(self._captures) > MOST_CAPTURES:
            self._captures = dict(list(self._captures.items())[::-2][::-1])

    @property
    def are_new(self) -> bool:
        """Whether there is something to compare that was not drawn yet."""
        enough = len(self._captures) > 1 or any(len(fates) > 1 for fates in self._fates.values())
        return enough and self._latest() != self._drawn

    def _latest(self) -> tuple[int, int]:
        """The steps of the last diagrams and of the last fates."""
        fates = (next(reversed(fates)) for fates in self._fates.values())
        return next(reversed(self._captures), -1), max(fates, default=-1)

    def draw(self) -> Iterator[tuple[str, "Figure"]]:
        """Each figure, with the key that it goes by. Raises `ImportError` where matplotlib is missing."""
        from lightning_topo._figures.fate import fate_figure
        from lightning_topo._figures.persistence import betti_figure, crocker_figure, diagram_figure

        self._drawn = self._latest()
        for group, place in self._chosen():
            captures = {step: found[group] for step, found in self._captures.items() if group in found}
            name = abbreviated(group)
            if fates := self._fates.get(group):
                yield f"{place}/fate", fate_figure(fates, f"{name}: what becomes of the neurons")
            if not captures:
                continue
            last, (error, is_vacuous) = next(reversed(captures)), self._errors.get(group, (0.0, False))
            title = f"{name}: persistence diagram at step {last:,}"
            yield f"{place}/diagram", diagram_figure(captures[last], title, error, is_vacuous)
            if curves := betti_figure(captures, f"{name}: Betti curves"):
                yield f"{place}/betti_curves", curves
            if table := crocker(captures, _N_SCALES):
                yield f"{place}/crocker", crocker_figure(table, f"{name}: CROCKER plot")

    def _chosen(self) -> list[tuple[str, str]]:
        """(group, first part of the keys) of the groups to draw."""
        worst_first = sorted(self._peaks, key=lambda group: -self._peaks[group])
        wanted = (
            {"all": ["*"], "worst": [], "auto": []}.get(self._log_groups, self._log_groups)
            if isinstance(self._log_groups, str)
            else self._log_groups
        )
        named = [group for group in worst_first if any(fnmatch.fnmatch(group, pattern) for pattern in wanted)]
        return [(group, "topology") for group in worst_first[:1]] + [
            (group, f"topology/{self._names[group]}") for group in named[:MOST_GROUPS]
        ]


def _says_nothing(diagram: PersistenceDiagram) -> bool:
    return any(diagram.is_vacuous(k) for k in range(1, diagram.max_dim + 1))
