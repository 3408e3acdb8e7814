"""Values under their published keys: which are due, for the trainer's metrics and for the loggers."""

import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_topo.measurement import GLOBAL

LogGroups = Literal["worst", "all"] | Sequence[str]

# Of these, the extreme since the last log is published: one bad step between two logs must not be lost.
_SINCE_LAST_LOG: dict[str, Callable[[float, float], float]] = {
    "critical_ratio": max,
    "proposed_critical_ratio": max,
    "expansion": max,
    "log_distortion": max,
    "contraction": min,
}
# Worst is largest, but for these.
_WORST_IS_SMALLEST = ("contraction", "total_contraction", "distinct_neurons")
# How a measurement was made, for the record only.
_RECORD_ONLY = frozenset(
    {
        "critical_i",
        "critical_j",
        "twins_split",
        "residual",
        "ratio_residual",
        "n_hvp",
        "converged",
        "exact",
        "micro_batch",
    }
)


def mangled_names(groups: Iterable[str]) -> dict[str, str]:
    """Each group's name as it stands in a key; where two collide, the later one gets `_2`, `_3`, ...

    W&B reads a dot as nesting, so every character outside `[A-Za-z0-9_/-]` becomes `_`.

    >>> mangled_names(["a.b", "a_b", "c"])
    {'a.b': 'a_b', 'a_b': 'a_b_2', 'c': 'c'}
    """
    names: dict[str, str] = {}
    for group in groups:
        plain = re.sub(r"[^A-Za-z0-9_/-]", "_", group)
        taken = set(names.values())
        names[group] = next(name for name in _candidates(plain) if name not in taken)
    return names


def _candidates(plain: str) -> Iterator[str]:
    yield plain
    for count in itertools.count(2):
        yield f"{plain}_{count}"


@dataclass(slots=True)
class Publisher:
    """Keeps the latest values, and hands them out: all to the trainer, the fresh ones to the loggers.

    `critical_ratio` and `expansion` are the maximum, `contraction` the minimum since the last log.
    """

    groups: Sequence[str]
    log_groups: LogGroups = "worst"
    _names: Mapping[str, str] = field(init=False, repr=False)
    _latest: dict[tuple[str, str], float] = field(init=False, repr=False, default_factory=dict)
    _fresh: set[tuple[str, str]] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        if isinstance(self.log_groups, str) and self.log_groups not in ("worst", "all"):
            raise ValueError(f'expected log_groups "worst", "all" or patterns, got {self.log_groups!r}')
        self._names = mangled_names(self.groups)

    def take(self, group: str, values: Mapping[str, float]) -> None:
        """Take in the values of one measurement."""
        for name, value in values.items():
            if name in _RECORD_ONLY:
                continue
            self._merge((group, name), value)
            if name in ("critical_ratio", "proposed_critical_ratio") and group != GLOBAL:
                self._merge((GLOBAL, name), value)

    def _merge(self, at: tuple[str, str], value: float) -> None:
        extreme = _SINCE_LAST_LOG.get(at[1])
        merged = extreme(self._latest[at], value) if extreme and at in self._fresh else value
        self._latest[at] = merged
        self._fresh.add(at)

    def metrics(self) -> dict[str, Tensor]:
        """Everything known, for `trainer.callback_metrics`."""
        return {self._key(at): torch.tensor(value) for at, value in self._latest.items()}

    def row(self) -> dict[str, float]:
        """What is new since the last row, for the loggers: the global values, and of the groups' the chosen ones."""
        chosen = {at: self._latest[at] for at in self._latest if at in self._fresh and self._is_logged(at)}
        self._fresh.clear()
        return {self._key(at): value for at, value in chosen.items()}

    def _is_logged(self, at: tuple[str, str]) -> bool:
        group, name = at
        if group == GLOBAL or self.log_groups == "all" or self._worst(name) == group:
            return True
        return self.log_groups != "worst" and any(fnmatch.fnmatch(group, p) for p in self.log_groups)

    def _worst(self, name: str) -> str:
        values = {g: self._latest[g, name] for g in self.groups if (g, name) in self._latest}
        sign = -1.0 if name in _WORST_IS_SMALLEST else 1.0
        return max(values, key=lambda g: math.inf if math.isnan(values[g]) else sign * values[g])

    def _key(self, at: tuple[str, str]) -> str:
        group, name = at
        return f"topology/{name}" if group == GLOBAL else f"topology/{self._names.get(group, group)}/{name}"
