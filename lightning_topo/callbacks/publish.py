"""Values under their published keys: which are due, for the trainer's metrics and for the loggers."""

import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
# Of these, the largest of all groups is a value of the whole network.
_GLOBAL_TOO = ("critical_ratio", "proposed_critical_ratio")
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

    The trainer asks after every step, and of fifty groups there are a thousand values: keys are made once, and tensors
    only of what has changed.
    """

    groups: Sequence[str]
    log_groups: LogGroups = "worst"
    _names: dict[str, str] = field(init=False, repr=False)
    _keys: dict[str, dict[str, str | None]] = field(init=False, repr=False, default_factory=dict)
    _places: dict[str, tuple[str, str]] = field(init=False, repr=False, default_factory=dict)
    _latest: dict[str, float] = field(init=False, repr=False, default_factory=dict)
    _changed: set[str] = field(init=False, repr=False, default_factory=set)
    _unsent: set[str] = field(init=False, repr=False, default_factory=set)
    _tensors: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.log_groups, str) and self.log_groups not in ("worst", "all"):
            raise ValueError(f'expected log_groups "worst", "all" or patterns, got {self.log_groups!r}')
        self._names = mangled_names(self.groups)

    def take(self, group: str, values: Mapping[str, float]) -> None:
        """Take in the values of one measurement."""
        keys = self._keys.setdefault(group, {})
        for name, value in values.items():
            key = keys[name] if name in keys else self._new_key(group, name)
            if key is None:
                continue
            extreme = _SINCE_LAST_LOG.get(name)
            if extreme is not None:
                if group != GLOBAL and name in _GLOBAL_TOO:
                    self.take(GLOBAL, {name: value})
                if key in self._changed or key in self._unsent:
                    value = extreme(self._latest[key], value)
            self._latest[key] = value
            self._changed.add(key)

    def metrics(self) -> Mapping[str, Tensor]:
        """Everything known, for `trainer.callback_metrics`."""
        if self._changed:
            keys = list(self._changed)
            # One tensor of all, cut up: a tenth of the time that a tensor for each would take.
            self._tensors.update(zip(keys, torch.tensor([self._latest[key] for key in keys]).unbind(), strict=True))
            self._unsent |= self._changed
            self._changed.clear()
        return self._tensors

    @property
    def keys(self) -> Collection[str]:
        """Every key that has a value yet, of all groups: any of them may come in a row."""
        return self._latest.keys()

    def row(self) -> dict[str, float]:
        """What is new since the last row, for the loggers: the global values, and of the groups' the chosen ones."""
        self.metrics()  # what has changed is the trainer's too, before a new period begins
        worst, fresh = self._worst(), self._unsent
        self._unsent = set()
        chosen = {}
        for key, value in self._latest.items():
            group, name = self._places[key]
            if key in fresh and (group == GLOBAL or worst[name] == group or self._is_wanted(group)):
                chosen[key] = value
        return chosen

    def _is_wanted(self, group: str) -> bool:
        if isinstance(self.log_groups, str):
            return self.log_groups == "all"
        return any(fnmatch.fnmatch(group, pattern) for pattern in self.log_groups)

    def _worst(self) -> dict[str, str]:
        """The worst group of every quantity."""
        worst: dict[str, tuple[float, str]] = {}
        for key, value in self._latest.items():
            group, name = self._places[key]
            if group == GLOBAL:
                continue
            badness = math.inf if math.isnan(value) else -value if name in _WORST_IS_SMALLEST else value
            if name not in worst or badness > worst[name][0]:
                worst[name] = (badness, group)
        return {name: group for name, (_, group) in worst.items()}

    def _new_key(self, group: str, name: str) -> str | None:
        """The key of a value that comes for the first time; None for what is not published."""
        if group != GLOBAL and group not in self._names:  # a probe of the user's own may have groups of its own
            self._names = mangled_names([*self._names, group])
        key = f"topology/{name}" if group == GLOBAL else f"topology/{self._names[group]}/{name}"
        self._keys[group][name] = None if name in _RECORD_ONLY else key
        self._places[key] = (group, name)
        return self._keys[group][name]
