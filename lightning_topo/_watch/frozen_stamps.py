"""Whether what is frozen of neurons still stands as a snapshot has seen it: no optimizer moves it, but others may."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.neurons._partly_trained import Beside

_SAMPLED = 64
"""Entries of a parameter that are compared ..."""
_COMPARED = 16
"""... and of how many parameters at a time."""

_SOON = 5
"""What moves within so many steps of a snapshot ..."""
_SNAPSHOTS = 2
"""... and so often in a row, is at rest for no bound."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stamp:
    """One frozen parameter as a snapshot has seen it: its memory, its counter of writes and some of its entries."""

    parameter: Tensor
    place: int
    version: int
    entries: Tensor | None

    @staticmethod
    def of(parameter: Tensor, *, samples: bool = True) -> "_Stamp":
        entries = _sampled(parameter) if samples else None
        return _Stamp(parameter, parameter.data_ptr(), _version(parameter), entries)

    def is_written(self) -> bool:
        return _version(self.parameter) != self.version or self.parameter.data_ptr() != self.place

    def differs(self) -> bool:
        return self.entries is not None and not torch.equal(_sampled(self.parameter), self.entries)


class FrozenStamps:
    """Tells in which groups something has moved frozen parameters since `take` was called for the group.

    By the counters of all writes, and, as `.data` is written to uncounted, by a few entries of each: of 16 parameters
    each time it is asked, in turn. These are compared on the CPU alone: elsewhere that would wait for the device.

    Groups in which something moves after every snapshot, as a teacher that follows between steps, are `restless`, and
    not looked at again.

    >>> weight = torch.ones(3)
    >>> stamps = FrozenStamps({"net": {"weight": weight}})
    >>> stamps.take("net")
    >>> stamps.moved(), weight.data.zero_().sum().item(), stamps.moved()
    (set(), 0.0, {'net'})
    """

    def __init__(self, beside: Beside) -> None:
        self.restless: set[str] = set()
        self._beside: Beside = beside
        self._stamps: dict[str, Sequence[_Stamp]] = {}
        self._turn = 0
        self._moved: set[str] = set()
        self._looks: dict[str, int] = {}  # since the snapshot, as long as nothing has moved
        self._soon: Counter[str] = Counter()  # snapshots in a row after which something soon moved

    def take(self, group: str, *, gives_up: bool = True) -> None:
        """The group's frozen parameters are what they are now. Unless this `gives_up`, no group becomes restless."""
        if group not in self._beside or group in self.restless:
            return
        self._soon[group] = self._soon[group] + 1 if group in self._moved and self._looks[group] <= _SOON else 0
        self._looks[group] = 0
        self._moved.discard(group)
        if gives_up and self._soon[group] >= _SNAPSHOTS:
            self.restless.add(group)
            del self._stamps[group]
        else:
            self._stamps[group] = [_Stamp.of(p) for p in self._beside[group].values()]

    def moved(self) -> set[str]:
        """The groups in which something has moved frozen parameters, as far as that is seen."""
        for group in self._stamps.keys() - self._moved:
            self._looks[group] += 1
        stamps = [(group, stamp) for group, own in self._stamps.items() for stamp in own]
        self._moved.update(group for group, stamp in stamps if stamp.is_written())
        if stamps and stamps[0][1].parameter.device.type == "cpu":
            turn = [stamps[(self._turn + k) % len(stamps)] for k in range(min(_COMPARED, len(stamps)))]
            self._turn += len(turn)
            self._moved.update(group for group, stamp in turn if group not in self._moved and stamp.differs())
        return set(self._moved)


class FrozenAtUpdate:
    """Tells which frozen parameters something has written to since an update, before this was measured.

    As LoRA's weights are merged behind a step. By the counters of all writes and, on the CPU, by a few entries of some,
    in turn: who is seen to write to `.data` of one may have written to all.

    >>> weight, stamps = torch.ones(3), FrozenAtUpdate()
    >>> stamps.updated({"weight": weight})
    >>> stamps.written(), weight.add_(1.0).sum().item(), stamps.written()
    (set(), 6.0, {'weight'})
    """

    def __init__(self) -> None:
        self._stamps: dict[str, _Stamp] = {}
        self._turn = 0
        self._suspects: set[str] = set()  # who writes once does so again

    def updated(self, frozen: Mapping[str, Tensor]) -> None:
        """Other parameters were just updated, and these are frozen."""
        if self._turn >= len(frozen):
            self._turn = 0
        sampled = range(self._turn, self._turn + _COMPARED)
        self._stamps = {
            name: _Stamp.of(p, samples=(k in sampled or name in self._suspects) and p.is_cpu)
            for k, (name, p) in enumerate(frozen.items())
        }
        self._turn += _COMPARED

    def written(self) -> set[str]:
        """The frozen parameters that are no longer as at the last update, as far as that is seen."""
        found = {name for name, stamp in self._stamps.items() if stamp.is_written()}
        uncounted = [name for name, stamp in self._stamps.items() if name not in found and stamp.differs()]
        if uncounted and len(self._suspects) < _COMPARED:
            self._suspects.update(uncounted)
        return set(self._stamps) if uncounted else found


def _version(parameter: Tensor) -> int:
    """The counter of writes; inference tensors have none."""
    return 0 if parameter.is_inference() else parameter._version


def _sampled(parameter: Tensor) -> Tensor:
    """A few entries of a parameter, far apart in its memory."""
    entries = parameter.detach()
    entries = entries.as_strided((entries.numel(),), (1,)) if _is_dense(entries) else entries.flatten()
    return entries[:: max(1, entries.numel() // _SAMPLED)][:_SAMPLED].clone()


def _is_dense(tensor: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)
