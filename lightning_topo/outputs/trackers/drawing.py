"""Which figures are drawn of a run as it goes on, and of which groups of neurons."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_topo.figures.captures import Pairs, bars, by_blocks, crocker
from lightning_topo.figures.style import abbreviated
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.watch.readings import LogGroups, mangled_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CAPTURES = 64
"""Above this many captures every second one is dropped: a figure has no room for more."""
MOST_GROUPS = 12
_N_SCALES = 60


class Drawings:
    """Keeps the captures, and draws of them persistence diagrams, Betti curves and CROCKER plots.

    Always drawn is the group whose critical ratio went highest, as `topology/diagram`, `topology/betti_curves` and
    `topology/crocker`; with `log_groups` of "all" or patterns also the groups it names, at most 12 of them, under
    their own names.
    """

    def __init__(self, groups: Sequence[str], log_groups: LogGroups) -> None:
        self._names, self._log_groups = mangled_names(groups), log_groups
        self._peaks = dict.fromkeys(groups, 0.0)
        self._captures: dict[int, Mapping[str, tuple[Pairs, ...]]] = {}
        self._drawn: int | None = None

    def measured(self, measurement: Measurement) -> None:
        """Take in a measurement, to know which group is worst."""
        ratio = measurement.values.get("critical_ratio", 0.0)
        # NaN is never larger.
        if measurement.group != GLOBAL and ratio > self._peaks.get(measurement.group, np.inf):
            self._peaks[measurement.group] = ratio

    def captured(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Take in the diagrams of one capture."""
        blocks = by_blocks(diagrams, tuple(self._names))
        self._captures[step] = {
            group: tuple(pairs.astype(np.float32) for pairs in bars(found)) for group, found in blocks.items()
        }
        if len(self._captures) > MOST_CAPTURES:
            self._captures = dict(list(self._captures.items())[::-2][::-1])

    @property
    def are_new(self) -> bool:
        """Whether there is something to compare that was not drawn yet."""
        return len(self._captures) > 1 and next(reversed(self._captures)) != self._drawn

    def draw(self) -> Iterator[tuple[str, "Figure"]]:
        """Each figure, with the key that it goes by. Raises `ImportError` where matplotlib is missing."""
        from lightning_topo.figures.persistence import betti_figure, crocker_figure, diagram_figure

        self._drawn = next(reversed(self._captures))
        for group, place in self._chosen():
            captures = {step: found[group] for step, found in self._captures.items() if group in found}
            if not captures:
                continue
            last, name = next(reversed(captures)), abbreviated(group)
            yield f"{place}/diagram", diagram_figure(captures[last], f"{name}: persistence diagram at step {last:,}")
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
