"""The clouds of the beginning, from which totals are measured: taken, kept in rank 0's record, and read back.

Each process has those of its own groups. The record has one file for all, so that a training can go on with another
number of processes, and rank 0 holds one cloud at a time while it writes or reads it. Only rank 0 can read the file
later: the other processes hold their clouds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo._watch.checkpoint import SavedWatch, resumed
from lightning_topo._watch.messages import some_of
from lightning_topo._watch.output import ReferenceStore
from lightning_topo._watch.probing import needs_reference
from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.reference_clouds import ReferenceClouds, Stored
from lightning_topo._watch.snapshots import Snapshots
from lightning_topo._watch.training import Training
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import TopologyEvent
from lightning_topo.probes import Clouds, Probe


@dataclass(frozen=True, slots=True)
class Reference:
    """This process's clouds of the beginning; `is_kept` if an earlier session has kept them.

    Of the groups that have `begun`, on any process, it has kept none that fits.
    """

    clouds: ReferenceClouds
    is_kept: bool
    begun: tuple[str, ...] = ()


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

    Returns the event that reports a resume, if the run was resumed. A collective.
    """
    # Only a resumed run and a branch read the file again, which is as large as the parameters, and only for probes that
    # measure since the beginning: where there is none of these, it is not written.
    if not any(map(needs_reference, probes)):
        return None if saved is None else resumed(training.step, training.epoch, saved.under_way())
    start = snapshots.before(step)
    # Neurons in flat shards are known only after the first step.
    start, at = (snapshots.now(), step) if start is None else (start, step - 1)
    own = start.trained().only(group.name for group in snapshots.active())
    empty = ReferenceClouds(next((p.device for p in training.module.parameters()), "cpu"))
    names = snapshots.kept_names()
    reference = taken_or_kept(store, at, groups, own, training.ranks, empty, names, resumes=saved is not None)
    snapshots.reference, snapshots.store = reference.clouds, store
    if store is not None and reference.begun:
        store.totals_from(at, reference.begun)
    snapshots.began_at = step if at < step and not reference.is_kept else None
    if saved is None:
        return None
    since = "" if reference.is_kept else " The clouds of the beginning are lost: totals count from here."
    if reference.begun:
        since = f" The totals of {some_of(reference.begun, 'groups')} count from here."
    return resumed(training.step, training.epoch, since + saved.under_way())


def keep_parameters(
    store: ReferenceStore | None, groups: Sequence[NeuronGroup], coverage: Sequence[ParameterCoverage]
) -> None:
    """Hand the groups of every parameter to rank 0's store."""
    if store is not None:
        store.parameters(groups, coverage)


def taken_or_kept(
    store: ReferenceStore | None,
    step: int,
    groups: Sequence[NeuronGroup],
    now: Clouds,
    ranks: Ranks,
    empty: ReferenceClouds,
    names: Mapping[str, str],
    *,
    resumes: bool,
) -> Reference:
    """Fill `empty` with the clouds that the run's store has, if it `resumes`; else with those of `now`, after `step`.

    `names` are those under which it keeps each group's.
    The store gets these, and where it has them they need not stay in memory. A collective.
    """
    kept = read_back(store, groups, now, ranks, empty, names) if resumes else None
    if kept is not None:
        return kept
    has_them = keep(store, step, groups, now, ranks, names)
    for name, cloud in now.items():
        if store is not None and has_them:
            empty.leave(name, Stored(tuple(cloud.shape), cloud.dtype, names[name]), store, cloud)
        else:
            empty.hold(name, cloud)
    return Reference(empty, is_kept=False)


def read_back(
    store: ReferenceStore | None,
    groups: Sequence[NeuronGroup],
    now: Clouds,
    ranks: Ranks,
    empty: ReferenceClouds,
    names: Mapping[str, str],
) -> Reference | None:
    """This process's clouds of the beginning, from rank 0's record; None on every process where none fits.

    A collective. `now` are this process's clouds as they stand; `empty` is filled, with these where the record's do not
    fit: groups that were found after the beginning are not in it.
    """
    stored = ranks.first("reference", lambda: _stored(store, groups, names))
    mine = {name: name in stored and stored[name].shape == now.shape(name) for name in now}
    fits = {name: fit for theirs in ranks.all("reference", mine) for name, fit in theirs.items()}
    begun = tuple(sorted(name for name, fit in fits.items() if not fit))
    if fits and len(begun) == len(fits):
        return None
    stored = {name: kind for name, kind in stored.items() if name not in begun}
    found: dict[str, Tensor] = {}
    whole = True
    for k, group in enumerate(groups):
        if group.name not in stored:
            continue
        kind, is_here = stored[group.name], ranks.owner(k) == 0
        cloud = None
        if ranks.rank == 0 and store is not None and not is_here:
            cloud = store.read_reference(kind.kept_name)
            whole &= cloud is not None
            if cloud is None:  # the owner waits for it all the same
                cloud = torch.zeros(kind.shape, dtype=kind.dtype)
            cloud = cloud.to(ranks.device)
        arrived = None if is_here else ranks.send(cloud, 0, ranks.owner(k), partial(_room, kind, ranks))
        if arrived is not None:
            found[group.name] = arrived
    if not all(ranks.all("reference", whole)):
        return None
    for k, group in enumerate(groups):
        if ranks.owns(k) and store is not None and group.name in stored:
            empty.leave(group.name, stored[group.name], store)
    for name, cloud in (found | {name: now[name] for name in now if name in begun}).items():
        empty.hold(name, cloud)
    return Reference(empty, is_kept=True, begun=begun)


def keep(
    store: ReferenceStore | None,
    step: int,
    groups: Sequence[NeuronGroup],
    now: Clouds,
    ranks: Ranks,
    names: Mapping[str, str],
) -> bool:
    """Hand the clouds of all processes, as they stood after `step`, to rank 0's store; whether it has them now.

    A collective.
    """
    arriving = ((names[name], cloud) for name, cloud in _arriving(groups, now, ranks))
    has_them = store is not None and store.reference(step, arriving)
    for _ in arriving:  # what a store that fails has left: the others wait to hand it over
        pass
    return has_them


def _arriving(groups: Sequence[NeuronGroup], now: Clouds, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """On rank 0 the clouds of all groups, one after the other; on the others, none."""
    if ranks.size == 1:
        yield from now.items()
        return
    kinds = {name: Stored(tuple(cloud.shape), cloud.dtype) for name, cloud in now.items()}
    every = {name: kind for theirs in ranks.all("reference", kinds) for name, kind in theirs.items()}
    for k, group in enumerate(groups):
        if group.name not in every:  # it could not be gathered
            continue
        cloud = now[group.name] if ranks.owns(k) else None
        arrived = ranks.send(cloud, ranks.owner(k), 0, partial(_room, every[group.name], ranks))
        if arrived is not None:
            yield group.name, arrived


def _stored(store: ReferenceStore | None, groups: Sequence[NeuronGroup], names: Mapping[str, str]) -> dict[str, Stored]:
    if store is None:
        return {}
    found = ((g.name, store.read_reference(names[g.name])) for g in groups)
    return {name: Stored(tuple(c.shape), c.dtype, names[name]) for name, c in found if c is not None}


def _room(kind: Stored, ranks: Ranks) -> Tensor:
    """For a cloud that arrives."""
    return torch.empty(kind.shape, dtype=kind.dtype, device=ranks.device)
