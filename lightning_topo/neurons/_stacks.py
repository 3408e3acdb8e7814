"""Stacked tensors: beside the axis of indices, an atom has a copy for each index until several are used together.

A fused query, key and value, or the hidden states of several networks in one tensor: as long as every call keeps to one
index at a time, the neurons at one index may be exchanged without those at another. An axis may turn out to be stacked
only when an index of it is picked: what calls have mixed before is kept together then.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from lightning_topo.neurons._coupling import Atom, Axis, flat, merge_copies
from lightning_topo.neurons._operator_call import OperatorCall

_ONE_BY_ONE = frozenset({"select", "unbind", "stack", "unsqueeze", "squeeze", "permute"})
"""Calls whose argument `dim` does not say that they work along that axis, or that take indices one at a time."""

_SYMMETRIC = frozenset(
    {"sum", "mean", "amax", "amin", "var", "std", "logsumexp", "norm", "linalg_vector_norm", "prod", "any", "all",
     "max", "min", "nansum", "nanmean", "count_nonzero"}
)  # fmt: skip

_SLICES = frozenset(
    {"slice", "split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes",
     "tensor_split", "split_copy", "split_with_sizes_copy"}
)  # fmt: skip

AxesOf = Callable[[Tensor], Sequence[Axis] | None]


def tie_mixed_indices(call: OperatorCall, axes_of: AxesOf, *, by_entry: bool) -> None:
    """Merge the copies of atoms whose indices a call is about to mix.

    It does so along the stacked axis, or where two of its inputs have that axis at different places: z zᵀ pairs each
    index with each. What a symmetric function reduces with the stacked axis stays as it is.
    """
    if call.name in _ONE_BY_ONE:
        return
    places: dict[tuple[Atom, Atom], list[int | None]] = {}
    for tensor in call.inputs:
        atoms = _atoms(tensor, axes_of)
        stacked = [(dim, atom, stack) for dim, atom in atoms for stack in _stacks(atom)]
        worked = _worked(call, tensor, axes_of) if stacked else set[int]()
        at: dict[Atom, int | None] = {}
        for dim, atom in atoms:
            at[atom] = None if atom in at else dim  # an index that comes twice pairs each with each
        for dim, atom, stack in stacked:
            place = at.get(stack)
            places.setdefault((atom, stack), []).append(place)
            if place is None and stack in at:
                _keep_together(atom)
            if place in worked and not (call.name in _SYMMETRIC and dim in worked):
                _keep_together(atom)
    for (atom, _), where in places.items():
        if len(set(where)) > 1 or (len(where) > 1 and not by_entry):
            _keep_together(atom)


def tie_lost_indices(call: OperatorCall, axes_of: AxesOf) -> None:
    """Merge the copies of atoms whose stacked axis a call's outputs no longer have."""
    if call.name in _ONE_BY_ONE:
        return
    for tensor in call.outputs:
        atoms = _atoms(tensor, axes_of)
        present = {atom for _, atom in atoms}
        for _, atom in atoms:
            if any(stack not in present for stack in _stacks(atom)):
                _keep_together(atom)


def _atoms(tensor: Tensor, axes_of: AxesOf) -> list[tuple[int, Atom]]:
    """The atoms of a tensor with the place of each, counted from the last axis."""
    axes = axes_of(tensor) or ()
    return [(dim - len(axes), part) for dim, axis in enumerate(axes) for atom in flat(axis) for part in _parts(atom)]


def _parts(atom: Atom) -> Iterator[Atom]:
    """An atom; where one with copies has been cut, its parts, which have them now."""
    if atom.summands is not None and atom.stack is not None:
        for axis in atom.summands:
            for part in flat(axis):
                yield from _parts(part)
    else:
        yield atom


def _stacks(atom: Atom) -> list[Atom]:
    """The axis of indices for each of which an atom has a copy, or those that may turn out to be one."""
    if atom.copies:
        return [] if atom.stack is None else [atom.stack.root]
    outer = None if atom.outer is None else atom.outer.root
    if atom.touched or outer is None or outer.factors is None:
        return []
    factors = flat(outer.factors)
    return [other for other in dict.fromkeys((factors[0], factors[-1])) if other is not atom]


def _keep_together(atom: Atom) -> None:
    """Merge the copies of an atom; where it has none yet, it gets none."""
    merge_copies(atom)
    atom.touched = atom.touched or not atom.constant


def _worked(call: OperatorCall, tensor: Tensor, axes_of: AxesOf) -> set[int]:
    """The axes along which a call says that it works, counted from the last.

    A slice works on the first atom of its axis; every second entry, by its rule, on one index of the last.
    """
    found = {dim - tensor.dim() if dim >= 0 else dim for dim in _dims(call, tensor)}
    if call.name not in _SLICES:
        return found
    first = {dim: [atom for atom in flat((axes_of(tensor) or ())[dim]) if atom.size > 1] for dim in found}
    return {dim for dim, atoms in first.items() if call.get("step", 1) == 1 and (len(atoms) == 1 or atoms[0].is_stack)}


def _dims(call: OperatorCall, tensor: Tensor) -> Iterator[int]:
    for name in ("dim", "dims"):
        if name in call.arguments:
            dims = call.get(name)
            if dims is None or dims in ([], ()):
                yield from range(tensor.dim())
            else:
                yield from dims if isinstance(dims, list | tuple) else [dims]
    if call.name in ("index", "_unsafe_index") and tensor is call.inputs[0]:
        yield from (dim for dim, index in enumerate(call["indices"]) if index is not None)
