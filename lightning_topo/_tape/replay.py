"""Run a tape at other values of its parameters, in another precision."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_topo._tape.attention_dropout import generator_at, is_whole
from lightning_topo._tape.collectives import RECORDED
from lightning_topo._tape.draws import DirichletAsDrawn, GammaAsDrawn, generators_kept
from lightning_topo._tape.formulas import FORMULAS, named_arguments, plain
from lightning_topo._tape.program import (
    HIDDEN_WRITES,
    Call,
    Slot,
    Tape,
    alias,
    bits,
    extent,
    region,
    set_data,
    without_out,
)

HALF = (torch.float16, torch.bfloat16)
# Their sparse gradients have no second derivative; the dense ones are the same numbers.
_MAY_BE_SPARSE = ("aten::embedding", "aten::_embedding_bag")
_RAISED_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


class CannotReplay(RuntimeError):
    """A tape does not run at these values; the message says why."""


def replay(
    tape: Tape,
    named: Mapping[str, Tensor],
    *,
    precision: torch.dtype | None = None,
    formulas: bool = True,
) -> list[Tensor]:
    """The tape's outputs with other tensors for its parameters, buffers and draws, by name.

    What `named` lacks is as recorded. `precision` (float32 or float64) is the least precision of everything floating,
    also where the step casts to less; None leaves dtypes alone. `formulas` replaces fused kernels by their plain
    formulas, which can be differentiated twice. Gradients flow to `named` where they flowed in the step. Global
    generators stand afterwards where they stood, nothing in `named` is written, and no collective is issued.

    Raises `CannotReplay` where the tape has an obstacle or an operator fails, as with shapes that depend on values.
    """
    if tape.obstacle:
        raise CannotReplay(tape.obstacle)
    machine = _Machine(tape, named, precision, formulas)
    grad = torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad()
    with _as_recorded(tape), generators_kept(tape), grad:
        return machine.run()


class _Machine:
    """The values of the slots while a tape runs."""

    def __init__(self, tape: Tape, named: Mapping[str, Tensor], precision: torch.dtype | None, formulas: bool) -> None:
        self.tape = tape
        self.named = named
        self.precision = precision
        self.formulas = formulas
        self.written = tape.written | _statistics(tape)
        self.values: dict[int, Tensor] = {}
        self.last = _last_uses(tape)
        self.differentiates = torch.is_grad_enabled()
        self.copies: dict[int, Tensor] = {}
        self.last_writes = _last_writes(tape) if tape.functions and self.differentiates else {}

    def run(self) -> list[Tensor]:
        for position, call in enumerate(self.tape.calls):
            with torch.set_grad_enabled(call.grad and self.differentiates), self._keeping(call, position):
                try:
                    self._step(call)
                except CannotReplay:
                    raise
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    text = next(iter(str(error).splitlines()), "")
                    raise CannotReplay(f"{call.name} fails in the replay ({type(error).__name__}: {text})") from error
            for slot in self.last.get(position, ()):
                self.values.pop(slot, None)
        return [self._value(slot) for slot in self.tape.outputs]

    def _keeping(self, call: Call, position: int) -> AbstractContextManager[Any]:
        """Keep copies of what a gradient needs where it is overwritten later, as inside of autograd functions."""
        slots = (slot for slot in (*call.inputs, *call.outputs) if slot is not None)
        if not any(self.last_writes.get(self.tape.storages[slot], -1) > position for slot in slots):
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda kept: kept)

    def _step(self, call: Call) -> None:
        args = [self._decoded(arg) for arg in call.args]
        kwargs = {key: self._decoded(value) for key, value in call.kwargs.items()}
        if call.operator in (alias, bits, region) and call.args[2] is not None:
            args[0] = self._laid_out(call.inputs[0], args[0])
        result = self._result(call, args, kwargs)
        if call.operator is set_data:
            return
        for slot, value in zip(call.outputs, _leaves(result), strict=False):
            if slot is not None and value is not None and slot not in call.writes:
                self.values[slot] = self._raised(value)

    def _result(self, call: Call, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if call.operator in RECORDED:
            if call.draw is not None:
                kwargs["remainder" if "remainder" in call.name else "received"] = self._draw(call.draw)
            return call.operator(*args, **kwargs)
        if call.draw is not None and call.name in FORMULAS:
            return self._attended(call, args, kwargs, self._draw(call.draw))
        if call.draw is not None:
            return self._drawn(call, args, self._draw(call.draw))
        if call.operator is bits:
            self._check_bits(call)
        if call.name in FORMULAS and self._needs_formula(call):
            return plain(call, args, kwargs)
        if call.name == "aten::view":
            return self._view(args)
        if call.name in _MAY_BE_SPARSE:
            return call.operator(**{**named_arguments(call.operator, args, kwargs), "sparse": False})
        if (functional := without_out(call.operator)) is not None:
            return _into(functional, args, kwargs)
        if call.name == "aten::_cudnn_rnn":
            with warnings.catch_warnings(
                action="ignore"
            ):  # that weights are not one piece of memory: those of a replay
                return call.operator(*args, **kwargs)
        return call.operator(*args, **kwargs)

    def _needs_formula(self, call: Call) -> bool:
        return self.formulas or self.precision is torch.float64

    def _attended(self, call: Call, args: list[Any], kwargs: dict[str, Any], rows: Tensor) -> Any:
        """Fused attention with the dropout that it had; the kernel itself draws the same only for all samples."""
        device = args[0].device
        if self._needs_formula(call) or device.type != "cuda" or not is_whole(rows):
            return plain(call, args, kwargs, rows)
        with generator_at(rows, device):
            return call.operator(*args, **kwargs)

    def _check_bits(self, call: Call) -> None:
        """Refuse to look at memory as another type if its own is not the recorded one, or beside what is known."""
        layout = self.tape.layouts[call.inputs[0]]
        dtype, shape, stride, at = call.args[1:]
        if any(self._raised_dtype(one) is not one for one in (layout.dtype, dtype)):
            raise CannotReplay("the bits of memory are read as another type, in another precision")
        known = extent(layout.shape, layout.stride) * layout.dtype.itemsize
        if at < 0 or at + extent(shape, stride) * dtype.itemsize > known:
            raise CannotReplay("memory is read beside what is known of it")

    def _laid_out(self, slot: int, value: Tensor) -> Tensor:
        """The value in the order of memory that it had when recorded: a plain formula may have left it in another."""
        layout = self.tape.layouts[slot]
        strides = zip(value.shape, value.stride(), layout.stride, strict=False)
        if value.shape != layout.shape or all(now == then or n < 2 for n, now, then in strides):
            return value
        if self.tape.storages[slot] in self.written:
            raise CannotReplay("memory that is written lies in another order")
        return torch.empty_strided(layout.shape, layout.stride, dtype=value.dtype, device=value.device).copy_(value)

    def _drawn(self, call: Call, args: list[Any], drawn: Tensor) -> Any:
        """Return what a random call returned, with the numbers it drew when recorded."""
        if call.name == "aten::native_dropout":
            kept = 1 - float(args[1])
            if args[2] is False:
                return args[0].clone(), drawn
            return args[0] * drawn * (1 / kept if kept > 0 else 0.0), drawn
        if call.name == "aten::_fused_dropout":
            return args[0] * drawn / float(args[1]), drawn
        if call.name.startswith("aten::rrelu_with_noise"):
            return args[0].mul_(drawn) if call.name.endswith("_") else args[0] * drawn
        if call.name == "aten::_standard_gamma":
            return GammaAsDrawn.apply(args[0], drawn)
        if call.name == "aten::_sample_dirichlet":
            return DirichletAsDrawn.apply(args[0], drawn)
        if call.writes:
            return args[0].copy_(drawn)
        return drawn.clone()

    def _draw(self, name: str) -> Tensor:
        return self._raised(self.named.get(name, self.tape.draws[name]))

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, Slot):
            return self._value(value.index)
        if isinstance(value, tuple):
            return [self._decoded(part) for part in value]
        if isinstance(value, torch.dtype):
            return self._raised_dtype(value)
        return value

    def _value(self, slot: int) -> Tensor:
        value = self.values.get(slot)
        if value is None:
            value = self.values[slot] = self._initial(slot)
        return value

    def _initial(self, slot: int) -> Tensor:
        """A parameter, a buffer or a constant, copied where the tape writes to it."""
        names = self.tape.names.get(slot)
        if names is not None:
            given = next((self.named[name] for name in names if name in self.named), None)
            source = self.tape.values.get(slot) if given is None else given
            if source is None:
                raise CannotReplay(f"no value is given for {names[0]}, and none is recorded")
        elif slot in self.tape.constants:
            source = self.tape.constants[slot]
        else:
            raise CannotReplay("it reads a value that none of its recorded calls has made, and that is no parameter")
        value = self._raised(source)
        if self.tape.storages[slot] in self.written and value is source:
            with torch.enable_grad() if self.differentiates else torch.no_grad():
                value = source.clone()
        return value

    def _raised(self, tensor: Tensor) -> Tensor:
        dtype = self._raised_dtype(tensor.dtype)
        return tensor if dtype is tensor.dtype else tensor.to(dtype)

    def _raised_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.precision is None:
            return dtype
        if dtype in HALF or (dtype is torch.float32 and self.precision is torch.float64):
            return self.precision
        if dtype is torch.complex64 or dtype is torch.complex32:
            return _RAISED_COMPLEX[self.precision]
        return dtype

    def _view(self, args: list[Any]) -> Tensor:
        """A view, or a copy where a plain formula has left its result in another order of memory."""
        tensor, size = args
        if isinstance(size, torch.dtype):
            if self.precision is not None:
                raise CannotReplay("a view of the bits as another dtype, in another precision")
            return tensor.view(size)
        try:
            return tensor.view(size)
        except RuntimeError:
            return tensor.reshape(size)


def _into(functional: Any, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """The result of an operator, written into `out`: with a gradient, which `out=` has not, and never resized."""
    into = kwargs["out"]
    return into.copy_(functional(*args, **{name: value for name, value in kwargs.items() if name != "out"}))


def _statistics(tape: Tape) -> frozenset[int]:
    """Storages that operators write although their schema does not say so."""
    found = set()
    for call in tape.calls:
        for name in HIDDEN_WRITES.get(call.name, ()):
            value = call.argument(name)
            found |= {tape.storages[part.index] for part in (value,) if isinstance(part, Slot)}
    return frozenset(found)


def _last_writes(tape: Tape) -> dict[int, int]:
    """The last call that writes to each storage."""
    return {tape.storages[slot]: position for position, call in enumerate(tape.calls) for slot in call.writes}


def _last_uses(tape: Tape) -> dict[int, list[int]]:
    """The slots that are last read by each call."""
    last: dict[int, int] = {}
    for position, call in enumerate(tape.calls):
        for slot in (*call.inputs, *call.outputs, *call.writes):
            if slot is not None:
                last[slot] = position
    ends: dict[int, list[int]] = {}
    for slot, position in last.items():
        if slot not in tape.outputs:
            ends.setdefault(position, []).append(slot)
    return ends


def _leaves(result: Any) -> Sequence[Any]:
    """The parts of a result, in the order of a call's outputs."""
    if isinstance(result, (list, tuple)):
        return [leaf for part in result for leaf in _leaves(part)]
    return [result]


@contextmanager
def _as_recorded(tape: Tape) -> Iterator[None]:
    """Casts of autocast are on the tape: it must not add its own."""
    kinds = {layout.device.type for layout in tape.layouts} & {"cpu", "cuda", "mps", "xpu"}
    was = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind, enabled in was.items():
            torch.set_autocast_enabled(kind, enabled)
