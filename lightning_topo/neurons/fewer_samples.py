"""A tape on some of its samples: the same program, cheaper to run, with the same symmetries."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_topo.neurons.coupling import Atom, Axis, flat
from lightning_topo.neurons.trace import CouplingTrace
from lightning_topo.tape import Call, Tape
from lightning_topo.tape.program import alias, region

ENOUGH, MOST = 4, 8
"""One sample in eight is kept, but so many ..."""
SHARE = 8
HEAVY_BYTES = 1 << 28
"""... and fewer where they take more memory than this in float64."""


class CannotCut(RuntimeError):
    """The samples of a tape cannot be told apart from the rest of its program."""


def with_fewer_samples(tape: Tape, trace: CouplingTrace, tensors: Mapping[int, Tensor]) -> Tape:
    """The tape on its first samples; the tape itself where it has few, or where they cannot be told apart.

    Samples are the entries of the first axis of the data. The coupling says on which axes of which tensors they are;
    constants and draws are cut there, and the sizes that views and factories ask for follow. Whoever runs the result
    has to expect that an operator still asks for the former size.
    """
    kept = min(max(ENOUGH, -(-tape.n_samples // SHARE)), MOST)
    if not any(
        "batch_norm" in call.name for call in tape.calls
    ):  # which makes two samples +1 and -1, whatever they are
        kept = min(kept, max(1, tape.n_samples * HEAVY_BYTES // max(_wide_bytes(tape), 1)))
    if kept >= tape.n_samples:
        return tape
    try:
        return _cut(tape, trace, tensors, kept)
    except CannotCut:
        return tape


def _cut(tape: Tape, trace: CouplingTrace, tensors: Mapping[int, Tensor], kept: int) -> Tape:
    axes = {slot: known for slot, tensor in tensors.items() if (known := trace.known_axes(tensor)) is not None}
    samples: set[Atom] = set()
    for slot, constant in tape.constants.items():
        if slot in axes and constant.dim() and len(constant) == tape.n_samples:
            first = flat(axes[slot][0])
            if len(first) == 1 and first[0].is_leaf:
                samples.add(first[0])
    weights = {
        atom for pieces in trace.pieces.values() for piece in pieces for axis in piece.axes for atom in flat(axis)
    }
    carried = {atom for name, pieces in trace.pieces.items() if name.startswith("@") for atom in _atoms(pieces)}
    if not samples or samples & (weights - carried):
        raise CannotCut("no axis of samples")
    sizes = dict.fromkeys(samples, kept)
    shapes = {slot: tuple(_length(axis, sizes) for axis in known) for slot, known in axes.items()}

    def cut(tensor: Tensor, known: list[Axis]) -> Tensor:
        for dim, axis in enumerate(known):
            length = _length(axis, sizes)
            if length != tensor.shape[dim]:
                if not flat(axis) or flat(axis)[0] not in samples:
                    raise CannotCut("samples inside of another axis")
                tensor = tensor.narrow(dim, 0, length)
        return tensor

    constants = {
        slot: cut(value, axes[slot]) if slot in axes else _first(value, tape.n_samples, kept)
        for slot, value in tape.constants.items()
    }
    draws = {
        name: cut(value, trace.pieces[name][0].axes) if name in trace.pieces else value
        for name, value in tape.draws.items()
    }
    calls = tuple(_resized(call, tape, shapes) for call in tape.calls)
    return tape.replaced(calls=calls, constants=constants, draws=draws, n_samples=kept)


def _wide_bytes(tape: Tape) -> int:
    """The memory that all results together take in float64."""
    made = {slot for call in tape.calls for slot in call.outputs if slot is not None}
    return 8 * sum(math.prod(tape.layouts[slot].shape) for slot in made)


def _first(value: Tensor, n: int, kept: int) -> Tensor:
    """The first samples of what no rule has looked at (classes, say), where it is as long as the data."""
    return value[:kept] if value.layout is torch.strided and value.dim() and len(value) == n else value


def _atoms(pieces: list[Any]) -> set[Atom]:
    return {atom for piece in pieces for axis in piece.axes for atom in flat(axis)}


def _length(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """The length of an axis when some of its atoms have other sizes."""
    length = 1
    for atom in flat(axis):
        if atom.summands is not None:
            length *= sum(_length(part, sizes) for part in atom.summands)
        else:
            length *= sizes.get(atom, atom.size)
    return length


def _resized(call: Call, tape: Tape, shapes: Mapping[int, tuple[int, ...]]) -> Call:
    """The call with the new shape of its output wherever it asked for the old one."""
    for slot in call.outputs:
        if slot is None or slot not in shapes or shapes[slot] == tape.layouts[slot].shape:
            continue
        old, new = tape.layouts[slot].shape, shapes[slot]
        if call.operator in (alias, region):
            raise CannotCut("memory seen under another shape")

        def follow(value: Any, old: tuple[int, ...] = old, new: tuple[int, ...] = new) -> Any:
            if isinstance(value, tuple) and len(value) == len(old) and all(_asks(v, o) for v, o in zip(value, old)):  # noqa: B905 - lengths were compared
                return tuple(-1 if v == -1 else size for v, size in zip(value, new, strict=True))
            return value

        call = replace(
            call,
            args=tuple(follow(value) for value in call.args),
            kwargs={key: follow(value) for key, value in call.kwargs.items()},
        )
    return call


def _asks(value: Any, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (size, -1)
