"""A recorded step as a straight-line program: calls on slots, where a slot stands for a tensor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a tensor in a program."""

    index: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a slot's tensor looks like."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class Call:
    """One call: an operator, its arguments with slots for tensors, and the slots of its tensor outputs.

    `inputs` are the slots that it reads, `writes` those that it writes in place. `grad` is the grad mode of the call.
    `draw` names the constant that stands for what the call drew from a generator.
    """

    operator: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    writes: tuple[int, ...] = ()
    grad: bool = True
    draw: str | None = None
    inputs: tuple[int, ...] = field(init=False, repr=False, compare=False)
    name: str = field(init=False, repr=False, compare=False)
    """The operator's name, as `aten::mm`."""

    def __post_init__(self) -> None:
        schema = getattr(self.operator, "_schema", None)
        name = schema.name if schema is not None else getattr(self.operator, "__name__", str(self.operator))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "inputs", tuple(slots_in((self.args, self.kwargs))))

    def argument(self, name: str) -> Any:
        """The argument of that name in the operator's schema, or its default; None where there is none."""
        schema = getattr(self.operator, "_schema", None)
        for position, declared in enumerate(schema.arguments if schema is not None else ()):
            if declared.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, declared.default_value if declared.has_default_value() else None)
        return self.kwargs.get(name)


def leaves(value: Any) -> list[Any]:
    """What nested arguments consist of, in order; many times as fast as a general pytree's."""
    found: list[Any] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Any]) -> None:
    if isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, (list, tuple, dict)):
                _collect(part, found)
            else:
                found.append(part)
    elif isinstance(value, dict):
        if value:
            _collect(list(value.values()), found)
    else:
        found.append(value)


def slots_in(value: Any) -> list[int]:
    """The slots in nested arguments, in order."""
    return [leaf.index for leaf in leaves(value) if isinstance(leaf, Slot)]


@dataclass(frozen=True, slots=True)
class HostRead:
    """A value that left the tensors for Python (`item`, a condition), or a shape that depends on values.

    `value` is what was read, where that is a number; `params` are the parameters that it descends from. Without
    `is_certain` it is what an operator has made and none reads: the host may have read it.
    """

    operator: str
    slot: int
    n_calls: int
    value: float | None = None
    params: frozenset[str] = frozenset()
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class Tape:
    """What a step computed up to one loss: calls, constants, and the slots of parameters and buffers by name.

    `names` are the names of each named slot: shared parameters have several, and a parameter that an optimizer moved
    during the step has a slot before and one after. `values` are the tensors of named slots where they stood, and
    `constants` all others that no call made; `held` are those of them that the module holds as plain attributes, and
    not the step's data. `draws` are recorded random numbers, `outputs` the slots of the loss
    (or of what a function returned), `scale` the factor by which the recorded loss exceeds the module's own.
    `host_reads` are those on which the outputs may depend. `obstacle` says why the tape cannot be replayed, and
    `gradient_obstacle` why its loss or gradient, in the parameters `unlike`, is not the step's although it runs; both
    are empty where all is well. `gradient_factor` is the factor by which hooks have scaled the gradient of all
    parameters, None where that is not known. `owners` are the parameters that updates have moved by this loss's
    gradient, None where that is not known; `place` counts the losses that such an update has taken together.
    """

    calls: tuple[Call, ...]
    outputs: tuple[int, ...]
    names: Mapping[int, tuple[str, ...]]
    values: Mapping[int, Tensor]
    constants: Mapping[int, Tensor]
    draws: Mapping[str, Tensor]
    layouts: Sequence[Layout]
    storages: Sequence[int]
    trainable: Mapping[str, bool]
    buffers: frozenset[str] = frozenset()
    held: frozenset[int] = frozenset()
    recorded: tuple[Tensor, ...] = ()
    scale: float = 1.0
    n_samples: int = 1
    functions: Mapping[int, str] = field(default_factory=dict)
    host_reads: tuple[HostRead, ...] = ()
    obstacle: str = ""
    gradient_obstacle: str = ""
    unlike: frozenset[str] = frozenset()
    gradient_factor: float | None = None
    owners: frozenset[str] | None = None
    place: int = 0

    @property
    def program(self) -> tuple[Any, ...]:
        """What is called on which parameters, in order: tapes that share it differ in numbers alone."""
        named = self.names
        return tuple((call.operator, *(named[slot] for slot in call.inputs if slot in named)) for call in self.calls)

    @property
    def params(self) -> frozenset[str]:
        """The first names of the parameters and buffers on which the outputs depend."""
        used = {slot for call in self.calls for slot in call.inputs} | set(self.outputs)
        return frozenset(names[0] for slot, names in self.names.items() if slot in used)

    def replaced(self, **changes: Any) -> "Tape":
        """The same tape with some fields changed."""
        return replace(self, **changes)

    @property
    def named_values(self) -> dict[str, Tensor]:
        """The recorded values by first name; the latest where a parameter moved during the step."""
        return {names[0]: self.values[slot] for slot, names in self.names.items()}

    @property
    def written(self) -> frozenset[int]:
        """The storages that some call writes in place."""
        return frozenset(self.storages[slot] for call in self.calls for slot in call.writes)

    @property
    def written_names(self) -> frozenset[str]:
        """The names of the parameters and buffers that some call writes, as a target that follows by moving average."""
        written = self.written
        return frozenset(name for slot, names in self.names.items() if self.storages[slot] in written for name in names)

    def without_values(self) -> "Tape":
        """The tape without the recorded parameters and buffers, for replays that are given all of them."""
        return replace(self, values={})

    def owning_its_constants(self) -> "Tape":
        """The tape with copies of its constants, which nobody else can write to."""
        return replace(
            self,
            constants={slot: tensor.detach().clone() for slot, tensor in self.constants.items()},
            draws={name: tensor.detach().clone() for name, tensor in self.draws.items()},
        )


@cache
def write_positions(operator: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operator writes in place, by position and name.

    >>> write_positions(torch.ops.aten.copy_.default)
    ((0, 'self'),)
    """
    schema = getattr(operator, "_schema", None)
    if schema is None or schema.name in _NO_WRITES:
        return ()
    hidden = HIDDEN_WRITES.get(schema.name, ())
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in hidden
    )


def written_by(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that a call writes to."""
    return [
        tensor
        for position, name in write_positions(operator)
        for tensor in leaves(argument(args, kwargs, position, name))
        if isinstance(tensor, Tensor)
    ]


@cache
def without_out(operator: Any) -> Any | None:
    """The operator that returns what this one writes into `out`; None where it has no such argument, or several.

    >>> without_out(torch.ops.aten.mm.out), without_out(torch.ops.aten.add.out)
    (<OpOverload(op='aten.mm', overload='default')>, <OpOverload(op='aten.add', overload='Tensor')>)
    >>> without_out(torch.ops.aten.mm.default), without_out(torch.ops.aten.sort.values)
    (None, None)
    """
    schema = getattr(operator, "_schema", None)
    if schema is None or [argument.name for argument in schema.arguments if argument.is_out] != ["out"]:
        return None
    wanted = [(argument.name, str(argument.type)) for argument in schema.arguments if not argument.is_out]
    packet = operator.overloadpacket
    for name in packet.overloads():
        found = getattr(packet, name)
        if [(argument.name, str(argument.type)) for argument in found._schema.arguments] == wanted:
            return found
    return None


@cache
def functional_view(operator: Any) -> Any | None:
    """The operator that returns the view which an in-place one (`transpose_`) turns its tensor into.

    >>> functional_view(torch.ops.aten.t_.default)
    <OpOverload(op='aten.t', overload='default')>
    """
    packet = getattr(torch.ops.aten, operator._schema.name.removeprefix("aten::").removesuffix("_"), None)
    wanted = [(a.name, str(a.type)) for a in operator._schema.arguments]
    for overload in packet.overloads() if packet is not None else ():
        candidate = getattr(packet, overload)
        if [(a.name, str(a.type)) for a in candidate._schema.arguments] == wanted:
            return candidate
    return None


_STATISTICS = ("running_mean", "running_var")
HIDDEN_WRITES: Mapping[str, tuple[str, ...]] = {
    "aten::native_batch_norm": _STATISTICS,
    "aten::cudnn_batch_norm": _STATISTICS,
    "aten::miopen_batch_norm": _STATISTICS,
    "c10d::allreduce_": ("tensors",),
    "c10d::allreduce_coalesced_": ("tensors",),
    "c10d::broadcast_": ("tensors",),
    "c10d::reduce_": ("tensors",),
    "c10d::allgather_": ("output_tensors",),
    "c10d::_allgather_base_": ("output_tensor",),
    "c10d::allgather_coalesced_": ("output_lists",),
    "c10d::allgather_into_tensor_coalesced_": ("outputs",),
    "c10d::reduce_scatter_": ("output_tensors",),
    "c10d::_reduce_scatter_base_": ("output_tensor",),
    "c10d::gather_": ("output_tensors",),
    "c10d::scatter_": ("output_tensors",),
    "c10d::alltoall_": ("output_tensors",),
    "c10d::alltoall_base_": ("output",),
    "c10d::recv_": ("tensors",),
    "c10d::recv_any_source_": ("tensors",),
}
"""What operators write although their schema does not say so."""

_NO_WRITES = ("aten::record_stream",)


def argument(call_args: Sequence[Any], call_kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    """An argument given by position or by name; None where it is left out."""
    return call_args[position] if position < len(call_args) else call_kwargs.get(name)


def alias(tensor: Tensor, shape: Sequence[int], stride: Sequence[int] | None, offset: int) -> Tensor:
    """The same memory under another tensor that no gradient flows through, as `tensor.data` is.

    Without a `stride` it shows all of the tensor in the same way, however a replay lays that out.
    """
    bare = tensor.data
    if stride is None:
        return bare
    # Again by `data`: it is no view, into which nothing with a gradient could be written.
    return bare.as_strided(shape, stride, bare.storage_offset() + offset).data


def region(tensor: Tensor, shape: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """A part of the same memory, through which gradients flow."""
    return tensor.as_strided(shape, stride, tensor.storage_offset() + offset)


def bits(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int], at: int) -> Tensor:
    """The same memory as numbers of another type, `at` bytes behind the tensor's first or, if negative, before it.

    So a copy of a storage, as `copy.deepcopy` makes one, writes bytes where a tensor of floats is read.

    Raises ValueError where that is no whole number of them from the beginning of the memory, or more than it holds.

    >>> bits(torch.tensor([1.0, 2.0]), torch.int32, (1,), (1,), 4)
    tensor([1073741824], dtype=torch.int32)
    """
    first, odd = divmod(int(tensor.storage_offset()) * tensor.element_size() + at, dtype.itemsize)
    storage = tensor.untyped_storage()
    if first < 0 or odd or (first + extent(shape, stride)) * dtype.itemsize > storage.nbytes():
        raise ValueError(f"expected numbers of type {dtype} in a memory of {storage.nbytes()} bytes, got {at} bytes on")
    return torch.empty(0, dtype=dtype, device=tensor.device).set_(storage, first, shape, stride)


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many entries lie between the first and the last of a tensor, these included.

    >>> extent((2, 3), (10, 1)), extent((2, 0), (3, 1))
    (13, 0)
    """
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def set_data(tensor: Tensor, new: Tensor) -> None:
    """`tensor.data = new`."""
    tensor.data = new.detach()
