"""Values under their published keys: the latest of all, and what is new since the last row."""

import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.quantities import WORST, Direction, Keep, Scope, is_published, quantity

LogGroups = Literal["auto", "worst", "all"] | Sequence[str]

_EXTREMES: Mapping[Keep, Callable[[float, float], float] | None] = {Keep.LAST: None, Keep.MAX: max, Keep.MIN: min}

FEW_GROUPS = 4
"""With "auto", up to this many groups have their own values sent to trackers."""


def mangled_names(groups: Iterable[str]) -> dict[str, str]:
    """Each group's name as it stands in a key; where two collide, the later one gets `_2`, `_3`, ...

    W&B reads a dot as nesting, so every character outside `[A-Za-z0-9_/-]` becomes `_`.

    >>> mangled_names(["a.b", "a_b", "c", "worst"])
    {'a.b': 'a_b', 'a_b': 'a_b_2', 'c': 'c', 'worst': 'worst_2'}
    """
    names: dict[str, str] = {}
    taken = {WORST}
    for group in groups:
        plain = re.sub(r"[^A-Za-z0-9_/-]", "_", group)
        names[group] = next(name for name in _candidates(plain) if name not in taken)
        taken.add(names[group])
    return names


def _candidates(plain: str) -> Iterator[str]:
    yield plain
    for count in itertools.count(2):
        yield f"{plain}_{count}"


@dataclass(frozen=True, slots=True)
class _Slot:
    """The published key of a value, and which of several values is kept."""

    key: str
    group: str
    name: str
    extreme: Callable[[float, float], float] | None
    """Which of two values since the last row is kept; None for the later."""
    network: "_Slot | None"
    """The key of the worst group's value."""
    worst_is_low: bool


@dataclass(slots=True)
class Readings:
    """Keeps the latest values, and hands them out: all as metrics, the new ones as rows.

    `critical_ratio` and `expansion` are the maximum, `contraction` the minimum since the last row, as `quantities`
    has it. In a row stand the network's values, per quantity the worst group's as `topology/worst/<quantity>`, and
    those of the groups that `log_groups` names: "auto" is "all" where there are at most 4 groups, else "worst".

    The trainer asks after every step, and of fifty groups there are a thousand values: keys are made once, and
    tensors only of what has changed.

    >>> readings = Readings(["net.0"])
    >>> readings.take(Measurement(1, 0, "distortion", "net.0", {"contraction": 0.9}))
    >>> readings.row(1, 0).values
    {'topology/worst/contraction': 0.9, 'topology/net_0/contraction': 0.9}
    """

    groups: Sequence[str]
    log_groups: LogGroups = "auto"
    _names: dict[str, str] = field(init=False, repr=False)
    _slots: dict[tuple[str, str], dict[str, _Slot | None]] = field(init=False, repr=False, default_factory=dict)
    _owners: dict[str, str] = field(init=False, repr=False, default_factory=dict)
    _by_key: dict[str, _Slot] = field(init=False, repr=False, default_factory=dict)
    _latest: dict[str, float] = field(init=False, repr=False, default_factory=dict)
    _changed: set[str] = field(init=False, repr=False, default_factory=set)
    _unsent: set[str] = field(init=False, repr=False, default_factory=set)
    _tensors: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.log_groups, str) and self.log_groups not in ("auto", "worst", "all"):
            raise ValueError(f'expected log_groups "auto", "worst", "all" or patterns, got {self.log_groups!r}')
        self._names = mangled_names(self.groups)

    def take(self, measurement: Measurement) -> None:
        """Take in a measurement; values about how it was made are not published."""
        probe, group = measurement.probe, measurement.group
        slots = self._slots.setdefault((probe, group), {})
        for name, value in measurement.values.items():
            slot = slots[name] if name in slots else self._new(probe, group, name)
            while slot is not None:
                key = slot.key
                if slot.extreme is not None and (key in self._changed or key in self._unsent):
                    value = slot.extreme(self._latest[key], value)
                self._latest[key] = value
                self._changed.add(key)
                slot = slot.network

    def metrics(self) -> Mapping[str, Tensor]:
        """Everything known, by key: for `trainer.callback_metrics`."""
        if self._changed:
            keys = list(self._changed)
            # One tensor of all, cut up: a tenth of the time that a tensor for each would take.
            self._tensors.update(zip(keys, torch.tensor([self._latest[key] for key in keys]).unbind(), strict=True))
            self._unsent |= self._changed
            self._changed.clear()
        return self._tensors

    def latest(self, key: str) -> float | None:
        """The value of a key; None where it has none yet."""
        return self._latest.get(key)

    @property
    def keys(self) -> Collection[str]:
        """Every key that may come in a row, of what has a value yet."""
        slots = self._by_key.items()
        own = {key for key, slot in slots if slot.group == GLOBAL or self.is_wanted(slot.group)}
        return own | {f"topology/{WORST}/{slot.name}" for _, slot in slots if slot.group != GLOBAL}

    @property
    def names(self) -> Mapping[str, str]:
        """Each group's name as it stands in a key."""
        return self._names

    def row(self, step: int, epoch: int) -> Measurement:
        """The new values since the last row, by key."""
        self.metrics()  # what has changed is the metrics' too, before a new period begins
        fresh, self._unsent = self._unsent, set()
        worst: dict[str, float] = {}
        chosen: dict[str, float] = {}
        for key, value in self._latest.items():
            if key not in fresh:
                continue
            slot = self._by_key[key]
            if slot.group == GLOBAL:
                chosen[key] = value
                continue
            place = f"topology/{WORST}/{slot.name}"
            if place not in worst or _badness(value, slot) > _badness(worst[place], slot):
                worst[place] = value
            if self.is_wanted(slot.group):
                chosen[key] = value
        return Measurement(step, epoch, "row", GLOBAL, worst | chosen)

    @property
    def unmatched(self) -> list[str]:
        """The patterns of `log_groups` that match no group.

        >>> Readings(["net.0"], ["net.*", "encodr.*"]).unmatched
        ['encodr.*']
        """
        patterns = () if isinstance(self.log_groups, str) else self.log_groups
        return [pattern for pattern in patterns if not any(fnmatch.fnmatch(name, pattern) for name in self.groups)]

    def is_wanted(self, group: str) -> bool:
        """Whether a group's own values go to trackers."""
        if isinstance(self.log_groups, str):
            return self.log_groups == "all" or (self.log_groups == "auto" and len(self._names) <= FEW_GROUPS)
        return any(fnmatch.fnmatch(group, pattern) for pattern in self.log_groups)

    def _new(self, probe: str, group: str, name: str) -> _Slot | None:
        """The place of a value that comes for the first time; None for what is not published."""
        if group != GLOBAL and group not in self._names:  # a probe of the user's own may have groups of its own
            self._names = mangled_names([*self._names, group])
        slot = None
        if is_published(name, probe):
            row = quantity(name, probe)
            key = self._claim(probe, group, name, ours=row is not None)
            extreme = None if row is None else _EXTREMES[row.keep]
            is_low = row is not None and row.direction is Direction.LOW_IS_BAD
            network = None
            if group != GLOBAL and row is not None and row.scope is Scope.BOTH:
                of_network = self._slots.setdefault((probe, GLOBAL), {})
                network = of_network[name] if name in of_network else self._new(probe, GLOBAL, name)
            slot = _Slot(key, group, name, extreme, network, is_low)
            self._by_key[key] = slot
        self._slots.setdefault((probe, group), {})[name] = slot
        return slot

    def _claim(self, probe: str, group: str, name: str, *, ours: bool) -> str:
        """A key that no other probe's value has; a later value of ours takes the key from a user's."""
        place = "topology" if group == GLOBAL else f"topology/{self._names[group]}"
        key = f"{place}/{name}"
        owner = self._owners.get(key)
        if owner is not None and owner != probe:
            if not ours:
                return self._claim(probe, group, f"{probe}/{name}", ours=False)
            self._slots[owner, group].pop(name, None)
            for known in (self._latest, self._tensors, self._by_key):
                known.pop(key, None)
            self._changed.discard(key)
            self._unsent.discard(key)
        self._owners[key] = probe
        return key


def _badness(value: float, slot: _Slot) -> float:
    if math.isnan(value):
        return math.inf
    return -value if slot.worst_is_low else value
