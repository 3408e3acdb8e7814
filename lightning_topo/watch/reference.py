"""The clouds of the beginning, from which totals are measured: taken, kept in rank 0's record, and read back.

Each process holds those of its own groups. The record has one file for all, so that a training can go on with another
number of processes, and rank 0 holds one cloud of another process at a time while it writes or reads it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons.coverage import ParameterCoverage
from lightning_topo.phases import TopologyEvent
from lightning_topo.probes import Clouds, Probe
from lightning_topo.watch.checkpoint import SavedWatch, resumed
from lightning_topo.watch.output import ReferenceStore
from lightning_topo.watch.probing import needs_reference
from lightning_topo.watch.ranks import Ranks
from lightning_topo.watch.snapshots import Snapshots
from lightning_topo.watch.training import Training


@dataclass(frozen=True, slots=True)
class Stored:
    """A cloud that the record holds: its shape and type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Reference:
    """This process's clouds of the beginning; `is_kept` where they are those that an earlier session kept."""

    clouds: Mapping[str, Tensor]
    is_kept: bool


def begin_reference(
    snapshots: Snapshots,
    store: ReferenceStore | None,
    groups: Sequence[NeuronGroup],
    training: Training,
    saved: SavedWatch | None,
    step: int,
    probes: Sequence[Probe],
) -> TopologyEvent | None:
    """Give snapshots the clouds of the beginning: those that a resumed run kept, else those before `step`.

    Returns the event that says so where the run was resumed. A collective.
    """
    # Only a resumed run and a branch read the file again, which is as large as the parameters, and only for probes that
    # measure since the beginning: where there is none of these, it is not written.
    if not any(map(needs_reference, probes)):
        return None if saved is None else resumed(training.step, training.epoch, saved.under_way())
    start = snapshots.before(step)
    # What lies in flat shards is known only behind the first step.
    start, at = (snapshots.now(), step) if start is None else (start, step - 1)
    clouds = start.gather(group.name for group in snapshots.active())
    reference = taken_or_kept(store, at, groups, clouds, training.ranks, resumes=saved is not None)
    snapshots.reference = reference.clouds
    if saved is None:
        return None
    since = "" if reference.is_kept else " The clouds of the beginning are lost: totals count from here."
    return resumed(training.step, training.epoch, since + saved.under_way())


def keep_parameters(
    store: ReferenceStore | None, groups: Sequence[NeuronGroup], coverage: Sequence[ParameterCoverage]
) -> None:
    """Hand what became of every parameter to rank 0's store."""
    if store is not None:
        store.parameters(groups, coverage)


def taken_or_kept(
    store: ReferenceStore | None, step: int, groups: Sequence[NeuronGroup], now: Clouds, ranks: Ranks, *, resumes: bool
) -> Reference:
    """The clouds that the run's store has, if it `resumes`; else those of `now`, after `step`, which the store gets.

    A collective.
    """
    kept = read_back(store, groups, now, ranks) if resumes else None
    if kept is not None:
        return Reference(kept, is_kept=True)
    keep(store, step, groups, now, ranks)
    return Reference(now, is_kept=False)


def read_back(
    store: ReferenceStore | None, groups: Sequence[NeuronGroup], now: Clouds, ranks: Ranks
) -> dict[str, Tensor] | None:
    """This process's clouds of the beginning, from rank 0's record; None on every process where they do not fit.

    A collective. `now` are this process's clouds as they stand.
    """
    stored = ranks.first("reference", lambda: _stored(store, groups))
    fits = all(name in stored and stored[name].shape == tuple(cloud.shape) for name, cloud in now.items())
    if not all(ranks.all("reference", fits)):
        return None
    clouds: dict[str, Tensor] = {}
    whole = True
    for k, group in enumerate(groups):
        kind = stored[group.name]
        cloud = None
        if ranks.rank == 0 and store is not None:
            cloud = store.read_reference(group.name)
            whole &= cloud is not None
            if cloud is None:  # the owner waits for it all the same
                cloud = torch.zeros(kind.shape, dtype=kind.dtype)
        if ranks.size > 1 and cloud is not None:
            cloud = cloud.to(ranks.device)
        arrived = ranks.send(cloud, 0, ranks.owner(k), partial(_room, kind, ranks))
        if arrived is not None:
            clouds[group.name] = arrived
    return clouds if all(ranks.all("reference", whole)) else None


def keep(store: ReferenceStore | None, step: int, groups: Sequence[NeuronGroup], now: Clouds, ranks: Ranks) -> None:
    """Hand the clouds of all processes, as they stood after `step`, to rank 0's store. A collective."""
    arriving = _arriving(groups, now, ranks)
    if store is not None:
        store.reference(step, arriving)
    for _ in arriving:  # what a store that fails has left: the others wait to hand it over
        pass


def _arriving(groups: Sequence[NeuronGroup], now: Clouds, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """On rank 0 the clouds of all groups, one after the other; on the others, none."""
    kinds = {name: Stored(tuple(cloud.shape), cloud.dtype) for name, cloud in now.items()}
    every = {name: kind for theirs in ranks.all("reference", kinds) for name, kind in theirs.items()}
    for k, group in enumerate(groups):
        if group.name not in every:  # it could not be gathered
            continue
        cloud = now[group.name] if ranks.owns(k) else None
        arrived = ranks.send(cloud, ranks.owner(k), 0, partial(_room, every[group.name], ranks))
        if arrived is not None:
            yield group.name, arrived


def _stored(store: ReferenceStore | None, groups: Sequence[NeuronGroup]) -> dict[str, Stored]:
    if store is None:
        return {}
    found = ((group.name, store.read_reference(group.name)) for group in groups)
    return {name: Stored(tuple(cloud.shape), cloud.dtype) for name, cloud in found if cloud is not None}


def _room(kind: Stored, ranks: Ranks) -> Tensor:
    """For a cloud that arrives."""
    return torch.empty(kind.shape, dtype=kind.dtype, device=ranks.device)
