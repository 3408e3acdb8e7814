"""Turn the atoms of a finished trace into named groups of neurons."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import takewhile

from lightning_topo.neurons._coupling import (
    Atom,
    Axis,
    axis_size,
    flat,
    is_copied_along,
    leaves,
    summands,
    with_copies,
)
from lightning_topo.neurons._group import Kind, NeuronGroup, ParamSlice, Role, Step, owner
from lightning_topo.neurons._trace import FAILED_RULE, UNKNOWN_OPERATOR, CouplingTrace, Piece

Cell = list[Atom | None]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A place where an atom runs along an axis of a refined part of a parameter."""

    param: str
    steps: tuple[Step, ...]
    axes: Cell
    n_axes: int  # before the refinement


@dataclass(slots=True)
class Evidence:
    """The trace's findings about one atom."""

    occurrences: list[Occurrence] = field(default_factory=list)
    carried: list[Occurrence] = field(default_factory=list)  # in recorded draws, which are permuted along
    company: set[Atom] | None = None  # atoms present in every tensor that holds this one
    tags: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    roles: defaultdict[str, set[Role]] = field(default_factory=lambda: defaultdict(set))
    first_use: int = -1
    first_param: str = ""
    blocks: list[Atom] = field(default_factory=list)
    is_block: bool = False


def assemble(trace: CouplingTrace, trainable: Mapping[str, bool]) -> list[NeuronGroup]:
    """The groups of a finished trace, in the order in which the model computes them.

    `trainable` says of each parameter whether it is trained; names that it lacks are buffers.
    """
    evidence = _collect(trace)
    for atom, seen in evidence.items():
        seen.blocks = _blocks(atom, seen)
    for block in {block for atom, seen in evidence.items() if _is_exchanged(atom) for block in seen.blocks}:
        evidence[block].is_block = True
    groups: list[tuple[int, NeuronGroup]] = []
    for atom, seen in evidence.items():
        broken = _is_broken(atom)
        single = atom.size == 1 and not seen.blocks
        if not (broken or (single and not atom.frozen) or _is_exchanged(atom)) or not _is_hidden(atom, seen):
            continue
        kind = _kind(atom, seen)
        slices = tuple(_slices(atom, seen, trainable))
        name, block_shape = _name(kind, seen, trace.learning), tuple(block.size for block in seen.blocks)
        group = NeuronGroup(name, kind, atom.size, block_shape, slices)
        groups.append((seen.first_use, group.incoming_only(atom.reason) if broken else group))
    groups.sort(key=lambda item: item[0])
    return distinct([group for _, group in groups])


def is_carried(name: str) -> bool:
    """Whether a name is that of recorded numbers, which belong to a permutation but to no neuron."""
    return name.startswith("@")


def _is_broken(atom: Atom) -> bool:
    """Whether an operator that could not be followed is why neurons along the atom are not exchanged."""
    return atom.frozen and atom.reason.startswith((UNKNOWN_OPERATOR, FAILED_RULE))


def _is_exchanged(atom: Atom) -> bool:
    """Whether two or more neurons may be exchanged along the atom."""
    return not atom.frozen and atom.size > 1 and not atom.copies


def _collect(trace: CouplingTrace) -> dict[Atom, Evidence]:
    """Occurrences in parameters, company in all tensors, and the marks that rules left.

    A group is met, and named, by its first use that the gradient goes through: not by that of its copy in a teacher.
    """
    evidence: defaultdict[Atom, Evidence] = defaultdict(Evidence)
    implied = {tokens.root: experts.root for tokens, experts in trace.implied.items()}
    picks = [(frozenset(flat(places)), experts[0]) for places, axis in trace.picks if (experts := flat(axis))]
    picks = list(dict.fromkeys((places, expert) for places, expert in picks if places))
    known: set[tuple[tuple[int, ...], ...]] = set()
    pieces_axes = [_with_copies(piece) for pieces in trace.pieces.values() for piece in pieces]
    tensors = [*trace.witnesses, *pieces_axes]
    factors = dict.fromkeys(atom for axes in tensors for axis in axes for atom in _factors(axis))
    whole = {atom for atom in factors if _is_all_frozen(atom)}
    parts = {atom: _parts(atom, implied, whole) for atom in factors}
    for axes in tensors:
        key = tuple(tuple(id(atom.root) for atom in axis) for axis in axes)
        if key in known:
            continue
        known.add(key)
        present = [atom for axis in axes for atom in _factors(axis)]
        picked = [[dict.fromkeys([expert])] for places, expert in picks if places.issubset(present)]
        for atom, company in _company([*(parts[atom] for atom in present), *picked]):
            seen = evidence[atom]
            seen.company = set(company) if seen.company is None else seen.company & company
    for name, pieces in trace.pieces.items():
        for piece in pieces:
            for steps, cells in cells_of(_with_copies(piece), whole):
                for atom in dict.fromkeys(atom for atom in cells if atom is not None):
                    seen = evidence[atom].carried if is_carried(name) else evidence[atom].occurrences
                    seen.append(Occurrence(name, (*piece.steps, *steps), cells, len(piece.axes)))
    for order, use in enumerate(trace.uses):
        for atom in with_copies(leaves(use.axis)):
            seen = evidence[atom]
            for name in use.names:
                seen.roles[name].add(use.role)
            own = use.names & {occurrence.param for occurrence in seen.occurrences}
            first = min(own & trace.learning or own, default="")
            is_better = not seen.first_param or (first in trace.learning and seen.first_param not in trace.learning)
            if use.role == "incoming" and first and is_better:
                seen.first_use, seen.first_param = order, first
            if use.operator:
                seen.operators.add(use.operator)
    for axis, tag in trace.tags:
        for atom in with_copies(leaves(axis)):
            evidence[atom].tags.add(tag)
    found = {atom: seen for atom, seen in evidence.items() if seen.occurrences}
    for seen in found.values():
        seen.first_param = seen.first_param or seen.occurrences[0].param
    return found


def _is_all_frozen(atom: Atom) -> bool:
    """Whether an atom is a sum of which nothing can be exchanged, and nothing is in every part: no use to refine it.

    A sequence that is taken position by position is such a sum, of as many parts as it is long.
    """
    parts = [leaves(part) for part in summands([atom])]
    is_frozen = all(leaf.frozen and not _is_broken(leaf) for part in parts for leaf in part)
    return len(parts) > 1 and is_frozen and not set(parts[0]).intersection(*parts[1:])


Part = Mapping[Atom, None]
"""Atoms that lie in one refined part of a tensor, as an ordered set."""


def _parts(atom: Atom, implied: Mapping[Atom, Atom], whole: Set[Atom]) -> list[Part]:
    """The refined parts along one factor of an axis, each with what its atoms imply."""
    versions = atom.copies or [[atom]]  # each stands at an index of its own
    parts = [[one for one in cells if one is not None] for axis in versions for _, cells in cells_of([axis], whole)]
    return [dict.fromkeys((*part, *(implied[atom] for atom in part if atom in implied))) for part in parts]


def _company(factors: Sequence[Sequence[Part]]) -> Iterator[tuple[Atom, Set[Atom]]]:
    """Atoms of a tensor, each with those that are in all refined parts that hold this one; an atom may come twice.

    The tensor's parts are the product of those of its factors, and are not formed: two axes of a thousand positions
    have a million.
    """
    always = [set(parts[0]).intersection(*parts[1:]) for parts in factors]
    for i, parts in enumerate(factors):
        others = set[Atom]().union(*always[:i], *always[i + 1 :])
        holding: defaultdict[Atom, list[Part]] = defaultdict(list)
        for part in parts:
            for atom in part:
                holding[atom].append(part)
        for atom, theirs in holding.items():
            yield atom, others.union(set(theirs[0]).intersection(*theirs[1:]))


def cells_of(axes: list[Axis], whole: Set[Atom] = frozenset()) -> Iterator[tuple[tuple[Step, ...], Cell]]:
    """Refine a tensor until every axis is a single atom: the steps to each part, and its atoms.

    Sums in `whole` are left as they are, and stand for no atom.
    """
    for dim, axis in enumerate(axes):
        atoms = _factors(axis)
        if len(atoms) > 1:
            step: Step = ("unflatten", dim, tuple(atom.size for atom in atoms))
            parts: list[Axis] = [[atom] for atom in atoms]
            everywhere = [atom for axis in axes for atom in flat(axis)]
            # An index that is in other axes too goes with its own; else all of the tensor has it, see below.
            local = _at_each_index(parts, [atom for atom in atoms if everywhere.count(atom) > 1])
            for pick, found in local or [((), parts)]:
                picked: list[Step] = [("narrow", dim + at, i, 1) for at, i in pick]
                for steps, cells in cells_of([*axes[:dim], *found, *axes[dim + 1 :]], whole):
                    yield (step, *picked, *steps), cells
            return
        if len(atoms) == 1 and atoms[0].summands is not None and atoms[0] not in whole:
            offset = 0
            for part in summands(atoms):
                length = axis_size(part)
                for steps, cells in cells_of([*axes[:dim], part, *axes[dim + 1 :]], whole):
                    yield (("narrow", dim, offset, length), *steps), cells
                offset += length
            return
    if at_each := _at_each_index(axes, [atom for axis in axes for atom in flat(axis)]):
        for pick, found in at_each:
            for steps, cells in cells_of(found, whole):
                yield (*(("narrow", at, i, 1) for at, i in pick), *steps), cells
        return
    firsts = [flat(axis)[0] if axis else None for axis in axes]
    yield (), [None if atom in whole else atom for atom in firsts]


def _at_each_index(axes: list[Axis], indices: Axis) -> list[tuple[tuple[tuple[int, int], ...], list[Axis]]]:
    """Axes of one atom each, as they are at every index of the first of `indices` by which others have copies.

    Each with the place and the index. Empty where there is no such index, or where it comes twice: it is not known
    then by which of them the copies go.
    """
    atoms = [atom for axis in axes for atom in flat(axis)]
    for at, axis in enumerate(axes):
        index = next(iter(flat(axis)), None)
        if index is None or index not in indices or atoms.count(index) > 1:
            continue
        if not any(is_copied_along(atom, index) for atom in atoms):
            continue
        return [
            (((at, i),), [[] if k == at else _copy(other, index, i) for k, other in enumerate(axes)])
            for i in range(index.size)
        ]
    return []


def _copy(axis: Axis, index: Atom, i: int) -> Axis:
    """An axis at one index."""
    return [new for atom in flat(axis) for new in ((atom.copies or [])[i] if is_copied_along(atom, index) else [atom])]


def _factors(axis: Axis) -> Axis:
    """The atoms whose product an axis is; those of size 1 are left out where there is another."""
    atoms = flat(axis)
    return [atom for atom in atoms if atom.size > 1] or atoms[:1]


def _with_copies(piece: Piece) -> list[Axis]:
    """The axes of a piece, with the copies that belong to its index of a stacked axis."""
    if not piece.copies:
        return piece.axes
    return [[new for atom in axis for new in piece.copies.get(atom.root, [atom])] for axis in piece.axes]


def _blocks(atom: Atom, seen: Evidence) -> list[Atom]:
    """The atoms that accompany this one in every tensor: it permutes separately for each of their indices."""
    others = (seen.company or set()) - {atom}
    first = [cell for cell in seen.occurrences[0].axes if cell in others]
    return [
        other for other in first if other and all(other in place.axes for place in [*seen.occurrences, *seen.carried])
    ]


def _is_hidden(atom: Atom, seen: Evidence) -> bool:
    """Whether something feeds the neurons and something reads them: inputs and outputs are no neurons."""
    roles = {role for found in seen.roles.values() for role in found}
    tagged = not seen.tags.isdisjoint({"query_key", "reduced"})
    read = "outgoing" in roles or atom.frozen or (atom.size > 1 and (seen.is_block or tagged))
    return "incoming" in roles and read


def _kind(atom: Atom, seen: Evidence) -> Kind:
    if "skip" in seen.tags:
        return "residual"
    if any(occurrence.axes.count(atom) > 1 for occurrence in seen.occurrences):
        return "recurrent"
    if "convolution" in seen.operators:
        return "channel"
    if seen.is_block and any(o.n_axes > 2 and not o.steps for o in seen.occurrences):
        return "expert"
    if "head" in seen.tags and (seen.is_block or any(o.steps for o in seen.occurrences)):
        return "head"
    if seen.blocks and seen.tags & {"query_key", "value"}:
        return "head_dim"
    return "unit"


def _name(kind: Kind, seen: Evidence, learning: Set[str]) -> str:
    """The module whose outputs the neurons are; for heads and experts, the module around them."""
    if kind == "head":
        return f"{_common_owner(seen, learning)}.{'query_heads' if seen.blocks else 'heads'}"
    if kind == "head_dim":
        return f"{_common_owner(seen, learning)}.{'query_key' if 'query_key' in seen.tags else 'value'}"
    if kind == "expert":
        return f"{_common_owner(seen, learning)}.experts"
    if kind == "unit" and any(o.param == seen.first_param and o.n_axes > 2 for o in seen.occurrences):
        return seen.first_param
    suffix = ".groups" if seen.is_block and "groups" in seen.tags else ""
    return owner(seen.first_param) + suffix


def _common_owner(seen: Evidence, learning: Set[str]) -> str:
    """The innermost module that holds all parameters of the group that learn, or all if none does."""
    params = [occurrence.param for occurrence in seen.occurrences]
    paths = [owner(param).split(".") for param in [p for p in params if p in learning] or params]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return ".".join(level[0] for level in levels) or owner(seen.first_param)


def _slices(atom: Atom, seen: Evidence, trainable: Mapping[str, bool]) -> Iterator[ParamSlice]:
    for occurrence in [*seen.occurrences, *seen.carried]:
        dims = [dim for dim, cell in enumerate(occurrence.axes) if cell is atom]
        for position, dim in enumerate(dims):
            yield ParamSlice(
                param=occurrence.param,
                steps=occurrence.steps,
                dims=(*(occurrence.axes.index(block) for block in seen.blocks), dim),
                trainable=trainable.get(occurrence.param, False),
                role=_role(seen.roles.get(occurrence.param, set()), position, occurrence.param in trainable),
            )


def _role(roles: set[Role], position: int, is_parameter: bool) -> Role:
    """The role of an axis; a weight that both feeds and reads the neurons does so by its axes in order."""
    if not is_parameter:
        return "buffer"
    if len(roles) == 2:
        return "incoming" if position == 0 else "outgoing"
    return next(iter(roles)) if roles else "elementwise"


def distinct(groups: list[NeuronGroup]) -> list[NeuronGroup]:
    """Give groups of one name distinct names, first by their own parameter, then by a number."""
    for renamed in (
        lambda g, i: f"{g.name}.{g.slices[0].param.rpartition('.')[2]}",
        lambda g, i: f"{g.name}.{i}",
    ):
        counts, seen = Counter(group.name for group in groups), Counter[str]()
        result = []
        for group in groups:
            if counts[group.name] > 1:
                index = seen[group.name]
                seen[group.name] += 1
                group = replace(group, name=renamed(group, index))
            result.append(group)
        groups = result
    return groups
