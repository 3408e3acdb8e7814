"""Stacked tensors: beside the axis of indices, an atom has a copy for each index until several are used together.

A fused query, key and value, or the hidden states of several networks in one tensor: as long as every call keeps to one
index at a time, the neurons at one index may be exchanged without those at another.
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

AxesOf = Callable[[Tensor], Sequence[Axis] | None]


def tie_mixed_indices(call: OperatorCall, axes_of: AxesOf, *, by_entry: bool) -> None:
    """Merge the copies of atoms whose indices a call is about to mix.

    It does so along the stacked axis, or where two of its inputs have that axis at different places: z zᵀ pairs each
    index with each. What a symmetric function reduces with the stacked axis stays as it is.
    """
    if call.name in _ONE_BY_ONE:
        return
    places: dict[Atom, list[int | None]] = {}
    for tensor in call.inputs:
        atoms, indices = _atoms(tensor, axes_of)
        stacked = [(dim, atom) for dim, atom in atoms if atom.copies]
        worked = _worked(call, tensor) if stacked else set[int]()
        for dim, atom in stacked:
            place = indices.get(_stack(atom))
            places.setdefault(atom, []).append(place)
            if place in worked and not (call.name in _SYMMETRIC and dim in worked):
                merge_copies(atom)
    for atom, where in places.items():
        if len(set(where)) > 1 or (len(where) > 1 and not by_entry):
            merge_copies(atom)


def tie_lost_indices(call: OperatorCall, axes_of: AxesOf) -> None:
    """Merge the copies of atoms whose stacked axis a call's outputs no longer have."""
    if call.name in _ONE_BY_ONE:
        return
    for tensor in call.outputs:
        atoms, indices = _atoms(tensor, axes_of)
        for _, atom in atoms:
            if atom.copies and _stack(atom) not in indices:
                merge_copies(atom)


def _atoms(tensor: Tensor, axes_of: AxesOf) -> tuple[list[tuple[int, Atom]], dict[Atom, int]]:
    """The atoms of a tensor and the place of each, counted from the last axis, and the places of stacked axes."""
    axes = axes_of(tensor) or ()
    atoms = [(dim - len(axes), atom) for dim, axis in enumerate(axes) for atom in flat(axis)]
    return atoms, {atom: dim for dim, atom in atoms if atom.is_stack}


def _stack(atom: Atom) -> Atom:
    assert atom.stack is not None
    return atom.stack.root


def _worked(call: OperatorCall, tensor: Tensor) -> set[int]:
    """The axes along which a call says that it works, counted from the last."""
    return {dim - tensor.dim() if dim >= 0 else dim for dim in _dims(call, tensor)}


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
