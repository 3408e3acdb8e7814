"""Join the groups of neurons found on a later step with those found before: steps may use different parts."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from lightning_topo._parameter_coverage import NOT_MET, NOT_TRAINED, UNUSED, ParameterCoverage
from lightning_topo.neurons._from_tapes import FoundNeurons
from lightning_topo.neurons._group import NeuronGroup, ParamSlice

_CONTRADICTED = "a later step uses its parameters in a way that these neurons do not show"


def joined(first: FoundNeurons, later: FoundNeurons) -> FoundNeurons:
    """The neurons that two recorded steps show together; those of `first` keep their names and their order.

    - Neurons that only `later` uses are added.
    - A group of both has the slices of both, if each step leaves unused what only the other shows: its permutation is
      then one of either step.
    - Any other group of `first` that `later` uses is contradicted, and no longer proved.
    - Where `later` cannot be followed at all, it says nothing.
    """
    if later.refused:
        return first
    used_before, used_now = _used(first.coverage), _used(later.coverage)
    left = list(later.groups)
    groups = []
    for known in first.groups:
        same = [other for other in left if _overlap(known, other)]
        left = [other for other in left if other not in same]
        is_left_alone = not same and used_now.isdisjoint(known.parameter_names)
        groups.append(known if is_left_alone else _of_both(known, same, used_before, used_now))
    taken = {group.name for group in groups}
    added = []
    for group in left:
        added.append(_renamed(group, taken))
        taken.add(added[-1].name)
    drawn = first.drawn | {now.name for now, found in zip(added, left, strict=True) if found.name in later.drawn}
    drawn |= {g.name for g in groups for o in later.groups if o.name in later.drawn and _overlap(g, o)}
    return FoundNeurons((*groups, *added), _coverage(first, later), first.refused, drawn)


def renewed(first: FoundNeurons, later: FoundNeurons, changed: Collection[str]) -> FoundNeurons:
    """The neurons of a later step of a module that has `changed` these parameters, and those that it leaves alone.

    A group of `first` is left alone if the step uses none of its parameters, and none has changed.
    """
    if later.refused:
        return later
    others = _used(later.coverage) | set(changed)
    names = {group.name for group in later.groups}
    kept = [g for g in first.groups if g.name not in names and others.isdisjoint(g.parameter_names)]
    drawn = later.drawn | {group.name for group in kept if group.name in first.drawn}
    return FoundNeurons((*later.groups, *kept), later.coverage, later.refused, drawn)


def _of_both(
    known: NeuronGroup, same: Sequence[NeuronGroup], used_before: frozenset[str], used_now: frozenset[str]
) -> NeuronGroup:
    if known.status in ("declared", "incoming_only"):
        return known
    if len(same) != 1 or (same[0].n, same[0].block_shape) != (known.n, known.block_shape):
        return _contradicted(known)
    other = same[0]
    only_now = [piece for piece in other.slices if _place(piece) not in _places(known)]
    only_before = [piece for piece in known.slices if _place(piece) not in _places(other)]
    if not (_are_unused(only_now, known.n, used_before) and _are_unused(only_before, known.n, used_now)):
        return _contradicted(known)
    if other.status not in ("verified", "inert"):
        return _contradicted(known)
    flags = {_place(piece): piece for piece in other.slices}  # what is trained by now
    both = replace(known, slices=(*(flags.get(_place(piece), piece) for piece in known.slices), *only_now))
    # A permutation that one step does not feel is proved by the other alone.
    return both if known.status == "verified" else replace(both, status=other.status, reason=other.reason)


def _contradicted(known: NeuronGroup) -> NeuronGroup:
    return replace(known, status="unverified", reason=known.reason or _CONTRADICTED)


def _are_unused(pieces: Sequence[ParamSlice], n: int, used: frozenset[str]) -> bool:
    return all(used.isdisjoint(piece.names(n)) for piece in pieces)


def _overlap(one: NeuronGroup, other: NeuronGroup) -> bool:
    return not _places(one).isdisjoint(_places(other))


def _place(piece: ParamSlice) -> tuple[object, ...]:
    """What a slice takes of which parameter, whether that is trained or not."""
    return piece.param, piece.steps, piece.dims


def _places(group: NeuronGroup) -> set[tuple[object, ...]]:
    return {_place(piece) for piece in group.slices}


def _renamed(group: NeuronGroup, taken: set[str]) -> NeuronGroup:
    if group.name not in taken:
        return group
    k = next(k for k in range(1, len(taken) + 2) if f"{group.name}.{k}" not in taken)
    return replace(group, name=f"{group.name}.{k}")


def _used(coverage: Sequence[ParameterCoverage]) -> frozenset[str]:
    unknown = UNUSED, NOT_MET, NOT_TRAINED
    return frozenset(one.param for one in coverage if one.groups or one.reason not in unknown)


def _coverage(first: FoundNeurons, later: FoundNeurons) -> tuple[ParameterCoverage, ...]:
    """For each parameter what the step that uses it says; the groups of both are still to be named."""
    now = {one.param: one for one in later.coverage}
    return tuple(now.get(one.param, one) if one.reason in (UNUSED, NOT_MET) else one for one in first.coverage)
