"""Parameters in shards as a replay under autograd reads them: none stays whole between its reader and its gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo._tape.replay import HALF
from lightning_topo._watch.gathering import Gathering, Visit
from lightning_topo.neurons._units import Unit


@dataclass(slots=True)
class Reading(Gathering):
    """Parameters by name while a tape is replayed under autograd, in at least single precision; use it in `saving`.

    A `trained` one is handed out by a function whose backward pass gives `receive` its name and whole gradient, once
    for each time that it was read. What autograd saves of a parameter, of a view of it or of a cast is a note: the
    backward pass gathers its unit again, and keeps the latest. `meet` is called with the unit before each gathering.
    Parameters that are computed (two in one tensor, a norm of one) stay in memory, as activations do.
    """

    trained: frozenset[str]
    meet: Callable[[Unit], None]
    receive: Callable[[str, Tensor], None]
    anchor: Tensor = field(init=False)
    _owners: dict[str, Unit] = field(init=False)
    _known: dict[int, tuple[StorageWeakRef, "_Source"]] = field(default_factory=dict, init=False)
    _saved: dict[str, dict[str, torch.dtype]] = field(default_factory=dict, init=False)
    _latest: tuple[str, dict[str, Tensor]] = field(default=("", {}), init=False)

    def __post_init__(self) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        self._owners = {name: visit.unit for visit in self.plan for name in visit.dtypes}

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        value = Gathering.__getitem__(self, name)
        value = value.detach().to(raised(value.dtype), copy=True) if name in self.whole else value
        self._note(value, _Source(name, value.dtype))
        if name not in self.trained:
            return value
        with torch.enable_grad():
            return _Entering.apply(self.anchor, [value], name, self.receive)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let autograd save notes in place of parameters."""
        with torch.autograd.graph.saved_tensors_hooks(self._packed, self._unpacked), _Casts(self):
            yield

    def note_cast(self, tensor: Tensor, cast: Tensor) -> None:
        """A tensor was copied, maybe in another type: it is no new one if it was a parameter."""
        source = self._source(tensor)
        is_whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        if source is not None and is_whole and tensor.stride() == cast.stride() and not cast.storage_offset():
            self._note(cast, _Source(source.name, source.dtype, (*source.casts, cast.dtype)))

    def _visit(self, *, copying: bool) -> None:
        visit = self.plan[self.n_visited]
        self.n_visited += 1
        self.copies |= self._gathered(visit)

    def _gathered(self, visit: Visit) -> dict[str, Tensor]:
        self.meet(visit.unit)
        with visit.unit.gathered_in_full() as whole:
            return {name: whole[name].to(raised(dtype), copy=True) for name, dtype in visit.dtypes.items()}

    def _note(self, value: Tensor, source: "_Source") -> None:
        storage = value.untyped_storage()
        self._known[storage._cdata] = (StorageWeakRef(storage), source)

    def _source(self, tensor: Tensor) -> "_Source | None":
        if tensor.layout is not torch.strided or type(tensor) is not Tensor:
            return None
        # The weak reference keeps the place from being taken by another storage.
        return self._known.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def _packed(self, tensor: Tensor) -> Any:
        source = self._source(tensor)
        if source is None:
            return tensor
        if source.name in self._owners:
            self._saved.setdefault(self._owners[source.name].path, {})[source.name] = source.dtype
        return _Note(source, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    @torch.no_grad()
    def _unpacked(self, kept: Any) -> Tensor:
        if not isinstance(kept, _Note):
            return kept
        source = kept.source
        if source.name in self.whole:
            value = self.whole[source.name].detach().to(source.dtype, copy=True)
        else:
            unit = self._owners[source.name]
            if self._latest[0] != unit.path or source.name not in self._latest[1]:
                self._latest = ("", {})  # its memory first
                self._latest = (unit.path, self._gathered(Visit(unit, self._saved[unit.path])))
            value = self._latest[1][source.name]
        for dtype in source.casts:
            value = value.to(dtype)
        return value.as_strided(kept.shape, kept.stride, kept.offset)


def raised(dtype: torch.dtype) -> torch.dtype:
    """The type in which a gradient is computed of what a step computes in this one.

    >>> raised(torch.bfloat16), raised(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in HALF else dtype


@dataclass(frozen=True, slots=True)
class _Source:
    """A parameter in the type in which it was read, and what it was cast to since."""

    name: str
    dtype: torch.dtype
    casts: tuple[torch.dtype, ...] = ()


@dataclass(frozen=True, slots=True)
class _Note:
    """Where a saved tensor lies in a parameter's memory."""

    source: _Source
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Entering(torch.autograd.Function):
    """A value that enters the graph, and holds nothing in it: its whole gradient goes to `receive`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: list[Tensor], name: str, receive: Callable[..., None]) -> Tensor:
        ctx.name, ctx.receive = name, receive
        return value.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.receive(ctx.name, gradient)
        return None, None, None, None


class _Casts(TorchDispatchMode):
    """Notes the casts of parameters, as autocast makes them."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self._reading = reading

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self._reading.note_cast(args[0], result)
        return result
