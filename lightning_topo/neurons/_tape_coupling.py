"""Carry the axes of tensors along recorded tapes: no operator is run, only its rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

import lightning_topo.neurons._rules  # noqa: F401 - registers the rules
from lightning_topo._tape.collectives import RECORDED, gathered, plus_remainder, plus_remainder_
from lightning_topo._tape.formulas import FORMULAS, RECURRENT, plain
from lightning_topo._tape.program import Call, Slot, Tape, alias, bits, region, set_data
from lightning_topo._tape.pruning import passed_by_gradient
from lightning_topo.neurons._coupling import new_axis
from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._registry import rule_for
from lightning_topo.neurons._trace import CouplingTrace

# Buffers that training updates as it does parameters: batch norm, spectral norm of old and new kind, observed ranges.
STATE_BUFFERS = (
    *("running_mean", "running_var", "._u", "._v", "weight_u", "weight_v"),
    *("fake_quant.scale", "fake_quant.zero_point", ".min_val", ".max_val"),
)


@dataclass(frozen=True, slots=True)
class Coupling:
    """A finished trace, and for each tape the tensor that stood for each slot in it."""

    trace: CouplingTrace
    tensors: tuple[Mapping[int, Tensor], ...]


def couple(tapes: Sequence[Tape]) -> Coupling:
    """The coupling of all tapes together: what one loss ties is tied for all.

    The outputs of each tape are frozen. Fused recurrent kernels, and operators that have no rule but that torch can
    take apart, are followed through their parts. Memory: none but the axes.
    """
    trace = CouplingTrace()
    standins: dict[str, Tensor] = {}
    still = _StillBuffers(tapes)
    followers = [_Follower(trace, tape, standins, still) for tape in tapes]
    for follower in followers:
        follower.run()
    return Coupling(trace, tuple(follower.tensors for follower in followers))


def parameters_of(tapes: Sequence[Tape], trace: CouplingTrace) -> dict[str, bool]:
    """Whether each parameter is trained, in some of the steps.

    Those that a step writes and no gradient reaches, as the weights of a target or a teacher that follows, are left
    out: they are state, as buffers are.
    """
    trained: dict[str, bool] = {}
    for tape in tapes:
        trained |= {name: is_trained or trained.get(name, False) for name, is_trained in tape.trainable.items()}
    written = frozenset[str]().union(*(tape.written_names for tape in tapes))
    state = {name for name in written if not trained.get(name, False) or name not in trace.learning}
    return {name: is_trained for name, is_trained in trained.items() if name not in state}


class _StillBuffers:
    """Buffers that no step writes, as a bias of keys that is always zero.

    Nothing distinguishes their entries along an axis where these are equal: like a parameter's, they may move with
    the neurons, and stay right if a user fills them later.
    """

    def __init__(self, tapes: Sequence[Tape]) -> None:
        self._values: dict[str, list[Tensor | None]] = {}
        for tape in tapes:
            written = tape.written
            for slot, names in tape.names.items():
                if names[0] in tape.buffers:
                    value = None if tape.storages[slot] in written else tape.values.get(slot)
                    self._values.setdefault(names[0], []).append(value)

    def fixed_axes(self, name: str, n_axes: int) -> list[int]:
        """The axes along which the entries of a buffer differ, in any step; all where one writes it."""
        values = self._values[name]
        return [dim for dim in range(n_axes) if not all(v is not None and _is_equal_along(v, dim) for v in values)]


class _Follower:
    """One tape, with a tensor without memory in place of each slot's."""

    def __init__(self, trace: CouplingTrace, tape: Tape, named: dict[str, Tensor], still: "_StillBuffers") -> None:
        self.trace = trace
        self.tape = tape
        self.tensors: dict[int, Tensor] = {}
        for slot, names in tape.names.items():
            name = names[0]
            if name not in named:
                named[name] = self._new(slot)
                is_data = name in tape.buffers and not (name.endswith(STATE_BUFFERS) or _is_pruning_mask(name, tape))
                frozen = still.fixed_axes(name, named[name].dim()) if is_data else ()
                trace.register(name, named[name], frozen=frozen)
            self.tensors[slot] = named[name]
        for slot, constant in tape.constants.items():
            self.trace.values[self._tensor(slot)] = constant
        for slot in tape.held:
            self._hold(slot)

    def _hold(self, slot: int) -> None:
        """A constant of the model, as `self.scale = torch.ones(d)`: where its entries are equal, it couples nothing.

        Of data that happen to be equal the next batch may tell the entries apart.
        """
        if self.tape.storages[slot] in self.tape.written:
            return
        tensor, value = self._tensor(slot), self.tape.constants[slot]
        is_equal = [_is_equal_along(value, dim) for dim in range(value.dim())]
        self.trace.assign(
            tensor,
            [new_axis(n, frozen=not same, constant=same) for n, same in zip(value.shape, is_equal, strict=True)],
        )

    def run(self) -> None:
        passed = passed_by_gradient(self.tape.calls, self.tape.outputs, self.tape.storages)
        self.trace.learning.update(names[0] for slot, names in self.tape.names.items() if slot in passed)
        with torch.no_grad():
            for call in self.tape.calls:
                self._follow(call)
        for slot in self.tape.outputs:
            self.trace.read(self._tensor(slot))
            for axis in self.trace.axes(self._tensor(slot)):
                self.trace.freeze(axis, "an output of the model")

    def _follow(self, call: Call) -> None:
        args = [self._decoded(arg) for arg in call.args]
        kwargs = {key: self._decoded(value) for key, value in call.kwargs.items()}
        result = [None if slot is None else self._tensor(slot) for slot in call.outputs]
        if call.operator in (alias, bits, region, set_data) or call.operator in RECORDED:
            self._recorded(call, args, result)
        elif not self._followed_through(call, args, kwargs, result):
            self.trace.observe(call.operator, args, kwargs, result)
        if call.draw is not None and (carried := self._carried(call)) is not None:
            self.trace.carry(call.draw, carried)

    def _carried(self, call: Call) -> Tensor | None:
        """The tensor that shows the axes of what was drawn or received."""
        if call.name in FORMULAS and call.outputs[0] is not None:  # a row for each sample
            rows = torch.empty(self.tape.draws[call.draw or ""].shape, device="meta")
            samples = self.trace.axes(self._tensor(call.outputs[0]))[0]
            self.trace.assign(rows, [samples, new_axis(rows.shape[1], frozen=True)])
            return rows
        if call.name in ("aten::native_dropout", "aten::_fused_dropout"):
            slot = call.outputs[1]
        elif call.name.startswith("aten::rrelu_with_noise"):
            slot = call.outputs[0]
        else:
            slot = next((slot for slot in (*call.outputs, *call.writes) if slot is not None), None)
        if slot is None or self.tape.draws[call.draw or ""].shape != self.tape.layouts[slot].shape:
            return None
        return self._tensor(slot)

    def _followed_through(
        self, call: Call, args: list[Any], kwargs: Mapping[str, Any], result: Sequence[Tensor | None]
    ) -> bool:
        """Whether the call could be taken apart into operators that have rules, where it has none itself."""
        operator: Any = call.operator
        decomposition = None
        if call.name not in RECURRENT:
            if rule_for(operator) is not None or torch.Tag.pointwise in operator.tags or call.writes or not call.inputs:
                return False
            decomposition = decomposition_table.get(operator)
            if decomposition is None or self.trace.works_by_entry(operator, args, kwargs, result):
                return False
        before = dict(self.trace.unknown)
        try:
            with self.trace:
                parts = plain(call, args, kwargs) if decomposition is None else decomposition(*args, **kwargs)
        except Exception:
            return False
        if dict(self.trace.unknown) != before:
            self.trace.unknown.subtract({name: n - before.get(name, 0) for name, n in self.trace.unknown.items()})
            self.trace.unknown += type(self.trace.unknown)()
            return False
        flat = list(parts) if isinstance(parts, (list, tuple)) else [parts]
        for out, part in zip(result, flat, strict=False):
            if isinstance(out, Tensor) and isinstance(part, Tensor) and out.shape == part.shape:
                self.trace.adopt(out, part)
        return True

    def _recorded(self, call: Call, args: Sequence[Any], result: Sequence[Tensor | None]) -> None:
        """Memory seen under another tensor, and what other processes sent."""
        trace = self.trace
        if call.operator is set_data:
            target, source = args
            for axis, other in zip(trace.axes(target), trace.axes(source), strict=True):
                trace.unify(axis, other)
            return
        [out] = [tensor for tensor in result if tensor is not None]
        if call.operator in (alias, region):
            source, shape, stride = args[:3]
            if tuple(source.shape) == tuple(shape) and (stride is None or tuple(stride) == source.stride()):
                trace.adopt(out, source)
            elif call.operator is region or not trace.show(out, source, args[3], args[3] + _extent(shape, stride)):
                for axis in trace.axes(source):
                    trace.freeze(axis, "memory seen under another shape")
                trace.assign_data(out)
        elif call.operator is bits:
            for axis in trace.axes(args[0]):
                trace.freeze(axis, "memory seen as another type")
            trace.assign_data(out)
        elif call.operator in (plus_remainder, plus_remainder_):
            trace.assign(out, trace.axes(args[0]))
        elif call.operator is gathered or len(args) == 2:
            part = args[-1]
            axes, offset = trace.axes(part), out.dim() - part.dim()
            same = [offset >= 0 and out.shape[offset + i] == size for i, size in enumerate(part.shape)]
            kept = [axis if same[i] else new_axis(out.shape[offset + i], frozen=True) for i, axis in enumerate(axes)]
            trace.assign(out, [*(new_axis(size, frozen=True) for size in out.shape[:offset]), *kept])
        else:
            trace.assign_data(out)

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, Slot):
            return self._tensor(value.index)
        return [self._decoded(part) for part in value] if isinstance(value, tuple) else value

    def _tensor(self, slot: int) -> Tensor:
        if slot not in self.tensors:
            self.tensors[slot] = self._new(slot)
        return self.tensors[slot]

    def _new(self, slot: int) -> Tensor:
        layout = self.tape.layouts[slot]
        if len(layout.stride) != len(layout.shape):
            return torch.empty(layout.shape, dtype=layout.dtype, device="meta")
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device="meta")


def _is_equal_along(tensor: Tensor, dim: int) -> bool:
    """Whether all entries along an axis are the same; two of them show that most are not."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.shape[dim] < 2:
        return False
    first = tensor.narrow(dim, 0, 1)
    return torch.equal(first, tensor.narrow(dim, 1, 1)) and bool((tensor == first).all())


def equal_constants(group: NeuronGroup, tapes: Sequence[Tape]) -> tuple[str, ...]:
    """The attributes of modules that may stand for equal numbers at all neurons of a group, by their shapes.

    Whose axis it is, is not kept: any of a fitting length may be.
    """
    found: set[str] = set()
    for tape in tapes:
        for value in (tape.constants[slot] for slot in tape.held if tape.storages[slot] not in tape.written):
            if any(n % group.n == 0 and _is_equal_along(value, dim) for dim, n in enumerate(value.shape)):
                found.add(str(tuple(value.shape)))
    return tuple(sorted(found))


def _is_pruning_mask(name: str, tape: Tape) -> bool:
    """Whether a buffer is a mask of torch's pruning: it goes with its neurons, as a moment does."""
    original = f"{name.removesuffix('_mask')}_orig"
    return name.endswith("_mask") and any(original in names for names in tape.names.values())


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many places in memory a tensor spans."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
