"""The clouds of the beginning at rest: in the record's file where there is one, else in memory beside the training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo._memory import resting_device
from lightning_topo._watch.output import ReferenceStore
from lightning_topo.probes._probe import CloudMissing, Clouds

MOST_HELD = 1 << 24
"""Hold clouds in memory up to this many bytes in all; read the others from the store when needed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A cloud that the record holds: its shape and type, and its name there if that is not the group's."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kept_name: str = ""


class ReferenceClouds(Mapping[str, Tensor]):
    """This process's clouds of the beginning, by group, each on the training's `device` when asked for.

    A cloud that the store no longer gives raises `CloudMissing`, and `take_lost` names it once; the next time it is
    tried again.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        resting: Callable[[torch.device], torch.device] = resting_device,
    ) -> None:
        self._device = torch.device(device)
        self._resting = resting(self._device)
        self._held: dict[str, Tensor] = {}
        self._left: dict[str, tuple[Stored, ReferenceStore]] = {}
        self._lost: set[str] = set()
        self._has_reported = False

    def hold(self, name: str, cloud: Tensor) -> None:
        """Hold a group's cloud in memory, in place of what was known of it."""
        self._left.pop(name, None)
        self._held[name] = cloud.detach().to(self._resting)

    def leave(self, name: str, kind: Stored, store: ReferenceStore, cloud: Tensor | None = None) -> None:
        """Leave a group's cloud where the store has it; hold it if it is small. `cloud` where it is at hand."""
        size = kind.dtype.itemsize * torch.Size(kind.shape).numel()
        if sum(cloud.nbytes for cloud in self._held.values()) + size <= MOST_HELD:
            cloud = store.read_reference(kind.kept_name or name) if cloud is None else cloud
            if cloud is not None:
                self.hold(name, cloud.to(kind.dtype))
                return
        self._held.pop(name, None)
        self._left[name] = kind, store

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a group's cloud, which need not be read for it; None where there is none."""
        if name in self._held:
            return tuple(self._held[name].shape)
        return self._left[name][0].shape if name in self._left else None

    def among(self, shapes: Mapping[str, tuple[int, ...]]) -> "ReferenceClouds":
        """The clouds of these groups, as far as they have these shapes."""
        found = ReferenceClouds(self._device, lambda _: self._resting)
        fitting = {name for name, shape in shapes.items() if self.shape(name) == shape}
        found._held = {name: cloud for name, cloud in self._held.items() if name in fitting}
        found._left = {name: left for name, left in self._left.items() if name in fitting}
        found._lost, found._has_reported = self._lost, self._has_reported
        return found

    def take_lost(self) -> list[str]:
        """The groups whose clouds could not be read; empty after the first call that returned some."""
        if self._has_reported or not self._lost:
            return []
        self._has_reported = True
        return sorted(self._lost)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name].to(self._device)
        kind, store = self._left[name]
        cloud = store.read_reference(kind.kept_name or name)
        if cloud is None or tuple(cloud.shape) != kind.shape:
            self._lost.add(name)
            raise CloudMissing(f"the neurons of {name!r} when training began can no longer be read from the record")
        return cloud.to(self._device, kind.dtype)

    def __iter__(self) -> Iterator[str]:
        yield from self._held
        yield from self._left

    def __len__(self) -> int:
        return len(self._held) + len(self._left)

    def __contains__(self, name: object) -> bool:
        return name in self._held or name in self._left


class WithFrozen(Mapping[str, Tensor]):
    """Clouds of what is trained of neurons, with what is frozen of them, as it stands in the clouds `now`."""

    def __init__(self, trained: Mapping[str, Tensor], now: Clouds) -> None:
        self._trained, self._now = trained, now

    def __getitem__(self, name: str) -> Tensor:
        cloud = self._trained[name]
        try:
            if self._now.shape(name) == tuple(cloud.shape):
                return cloud
        except CloudMissing:  # a group that is no more
            return cloud
        whole, columns = self._now[name].clone(), self._now.trained_columns(name).to(cloud.device)
        whole[:, columns] = cloud.to(whole)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._trained)

    def __len__(self) -> int:
        return len(self._trained)

    def __contains__(self, name: object) -> bool:
        return name in self._trained
