"""Which axes of a recorded step's tensors count its samples: to run it on some of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import starmap
from typing import Any

import torch
from torch import Tensor

from lightning_topo._tape import Call, Tape
from lightning_topo._tape.program import alias, bits, region
from lightning_topo.neurons._coupling import Atom, Axis, axis_size, flat, is_constant, summands
from lightning_topo.neurons._trace import CouplingTrace


class Guess(Enum):
    """Which axes that are constant, and as long as there are samples, are taken for the samples', too."""

    NONE = 0
    FIRST = 1
    ANY = 2


GUESSES = (Guess.FIRST, Guess.ANY, Guess.NONE)
"""In the order in which they are tried: what runs most often first."""


class CannotCut(RuntimeError):
    """The samples of a tape cannot be distinguished from the rest of its program."""


@dataclass(frozen=True, slots=True)
class SampleAxes:
    """The axes of every tensor in a tape's program, and the atoms of them that count its samples.

    Samples are the entries of the first axis of the data, and of what is drawn for them. The coupling says on which
    axes of which tensors they are: there constants and draws are cut, and the sizes that views and factories ask for
    follow. Whoever runs a part has to expect that an operator still asks for the former size.
    """

    program: Tape
    constants: frozenset[int]
    trace: CouplingTrace
    axes: Mapping[int, list[Axis]]
    samples: frozenset[Atom]

    @classmethod
    def of(cls, tape: Tape, trace: CouplingTrace, tensors: Mapping[int, Tensor]) -> "SampleAxes":
        """The axes as a coupling has found them: its trace, and the tensor that stood for each slot."""
        axes = {slot: known for slot, tensor in tensors.items() if (known := trace.known_axes(tensor)) is not None}
        given = [(constant, axes[slot]) for slot, constant in tape.constants.items() if slot in axes]
        given += [(draw, trace.pieces[name][0].axes) for name, draw in tape.draws.items() if name in trace.pieces]
        samples = {
            first[0]
            for tensor, known in given
            if tensor.dim() and len(tensor) == tape.n_samples
            if len(first := flat(known[0])) == 1 and first[0].is_leaf
        }
        weights = {atom for name, pieces in trace.pieces.items() if not name.startswith("@") for atom in _atoms(pieces)}
        # Of the data nothing is kept: the next tapes have their own.
        program = tape.replaced(constants={}, values={}, draws={}, recorded=())
        found = frozenset() if samples & weights else frozenset(samples)
        return cls(program, frozenset(tape.constants), trace, axes, found)

    def fits(self, tape: Tape) -> bool:
        """Whether a tape is of the same program, on other data."""
        same = self.program
        return (
            (same.n_samples, same.outputs, same.names) == (tape.n_samples, tape.outputs, tape.names)
            and self.constants == tape.constants.keys()
            and list(same.layouts) == list(tape.layouts)
            and len(same.calls) == len(tape.calls)
            and all(_alike(one, other) for one, other in zip(same.calls, tape.calls, strict=True))
        )

    def part(self, tape: Tape, start: int, stop: int, guess: Guess) -> Tape:
        """Samples `start` to `stop`.

        Raises `CannotCut`.
        """
        if not self.samples:
            raise CannotCut("no axis of samples")
        n, kept = tape.n_samples, stop - start
        sizes = dict.fromkeys(self.samples, kept)
        sums: dict[Atom, int] = {}  # long ones are met again and again

        def length(dim: int, axis: Axis) -> int:
            if dim >= (0, 1, len(self.axes))[guess.value]:
                return _length(axis, sizes, sums)
            constant = [atom for atom in flat(axis) if is_constant(atom)]
            if axis_size(axis) == n and len(constant) == len(flat(axis)):
                return kept
            resized = {atom: kept for atom in constant if atom.size == n}
            return _length(axis, resized | sizes, {} if resized else sums)

        def cut(tensor: Tensor, known: list[Axis]) -> Tensor:
            for dim, axis in enumerate(known):
                if (size := _length(axis, sizes, sums)) != tensor.shape[dim]:
                    if not flat(axis) or flat(axis)[0] not in self.samples:
                        raise CannotCut("samples inside of another axis")
                    if tensor.layout is not torch.strided:
                        raise CannotCut("samples along an axis of a sparse tensor")
                    tensor = tensor.narrow(dim, start * (size // kept), size)
            return tensor

        def unread(tensor: Tensor) -> Tensor:
            is_data = tensor.layout is torch.strided and tensor.dim() and len(tensor) == n
            return tensor[start:stop] if is_data else tensor

        shapes = {slot: tuple(starmap(length, enumerate(known))) for slot, known in self.axes.items()}
        # Draws are numbered through from tape to tape.
        names = {new.draw: old.draw for new, old in zip(tape.calls, self.program.calls, strict=True) if new.draw}
        pieces = {new: self.trace.pieces[old] for new, old in names.items() if old in self.trace.pieces}
        calls = (_resized(call, tape, shapes) for call in tape.calls)
        return tape.replaced(
            calls=tuple(_counting(call, n, kept, shapes) for call in calls),
            constants={
                slot: cut(value, self.axes[slot]) if slot in self.axes else unread(value)
                for slot, value in tape.constants.items()
            },
            draws={
                name: cut(value, pieces[name][0].axes) if name in pieces else value
                for name, value in tape.draws.items()
            },
            n_samples=kept,
        )


_COUNTS = {"aten::arange": 0, "aten::native_group_norm": 3}
"""The arguments that give operators a number of samples, or of their rows."""


def _counting(call: Call, n: int, kept: int, shapes: Mapping[int, tuple[int, ...]]) -> Call:
    """The call with a number of samples among its arguments as it is now."""
    at = _COUNTS.get(call.name)
    made = call.outputs[0] if call.name == "aten::arange" else None
    if made is not None and shapes.get(made) == (n,):
        return call  # it counts something else that is as many
    if at is None or len(call.args) <= at or not isinstance(length := call.args[at], int):
        return call
    if length % n or (call.name == "aten::arange" and length != n):
        return call
    return replace(call, args=(*call.args[:at], length // n * kept, *call.args[at + 1 :]))


def _alike(one: Call, other: Call) -> bool:
    """Whether two calls do the same, whatever the numbers that they drew are called."""
    return (one.operator, one.args, one.kwargs, one.outputs, one.writes, one.grad, one.draw is None) == (
        other.operator, other.args, other.kwargs, other.outputs, other.writes, other.grad, other.draw is None
    )  # fmt: skip


def _atoms(pieces: list[Any]) -> set[Atom]:
    return {atom for piece in pieces for axis in piece.axes for atom in flat(axis)}


def _length(axis: Axis, sizes: Mapping[Atom, int], sums: dict[Atom, int]) -> int:
    """The length of an axis when some of its atoms have other sizes; `sums` keeps what has been added up."""
    length = 1
    for atom in flat(axis):
        if atom.summands is not None:
            if atom not in sums:
                sums[atom] = sum(_length(part, sizes, sums) for part in summands([atom]))
            length *= sums[atom]
        else:
            length *= sizes.get(atom, atom.size)
    return length


def _resized(call: Call, tape: Tape, shapes: Mapping[int, tuple[int, ...]]) -> Call:
    """The call with the new shape of its output wherever it asked for the old one."""
    for slot in call.outputs:
        if slot is None or slot not in shapes or shapes[slot] == tape.layouts[slot].shape:
            continue
        old, new = tape.layouts[slot].shape, shapes[slot]
        if call.operator is bits or (call.operator in (alias, region) and call.args[2] is not None):
            raise CannotCut("memory seen under another shape")
        if call.name == "aten::repeat":
            source = call.args[0].index
            repeated = shapes.get(source, tape.layouts[source].shape)
            repeated = (*[1] * (len(new) - len(repeated)), *repeated)
            times = tuple(size // part if part else 1 for size, part in zip(new, repeated, strict=True))
            return replace(call, args=(call.args[0], times, *call.args[2:]))

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
