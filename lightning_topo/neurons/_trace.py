"""Run a model once and learn which axes of its parameters are coupled."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo.neurons._ancestry import Ancestry
from lightning_topo.neurons._coupling import (
    Atom,
    Axis,
    axis_size,
    flat,
    freeze,
    is_constant,
    new_axis,
    renewed,
)
from lightning_topo.neurons._coupling import unify as unify_axes
from lightning_topo.neurons._elementwise import is_elementwise
from lightning_topo.neurons._group import Role, Step
from lightning_topo.neurons._marks import Marks
from lightning_topo.neurons._operator_call import OperatorCall, operator_call
from lightning_topo.neurons._registry import rule_for
from lightning_topo.neurons._stacks import tie_lost_indices, tie_mixed_indices
from lightning_topo.neurons._tensor_map import TensorMap
from lightning_topo.neurons._writes import Writes, written_in_place

CONSTANT_FACTORIES = frozenset({"zeros", "ones", "full", "empty", "scalar_tensor"})
UNKNOWN_OPERATOR = "unknown operator"
FAILED_RULE = "the rule failed of"
NOISE_FACTORIES = frozenset({"randn", "rand", "randint"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a parameter whose axes are known: refinement steps, the axes then, and replaced atoms."""

    steps: tuple[Step, ...]
    axes: list[Axis]
    copies: dict[Atom, Axis] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Use:
    """An axis of a weight that an operator gave out ("incoming") or summed over ("outgoing")."""

    names: frozenset[str]
    axis: Axis
    role: Role
    operator: str


class CouplingTrace(TorchDispatchMode):
    """Carries the axes of every tensor through every operator called inside the `with` block.

    Afterwards `pieces` holds the axes of each registered parameter, `witnesses` the axes of every tensor met
    (also of hidden ones, as attention scores), `uses` how weights were used, `unknown` the operators without
    a rule, whose inputs were frozen, `failed` those whose rule failed, likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pieces: dict[str, list[Piece]] = {}
        self.names: dict[int, str] = {}
        self.learning: set[str] = set()  # those by which a gradient may go from the loss
        self.witnesses: list[list[Axis]] = []
        self.uses: list[Use] = []
        self.tags: list[tuple[Axis, str]] = []
        self.unknown: Counter[str] = Counter()
        self.failed: dict[str, str] = {}  # operators whose rule raised an error -> the first one
        self.n_operators = 0
        self.implied: dict[Atom, Atom] = {}  # sorted tokens -> their experts
        self.picks: list[tuple[Axis, Axis]] = []  # the axes of an index, and that of the experts which it picks
        self._axes = TensorMap[list[Axis]]()
        self._weights = TensorMap[frozenset[str]]()  # tensors that depend on no data -> the parameters they come from
        self._ancestry = Ancestry()
        self._writes = Writes(self._axes, self._weights, self._ancestry)
        self._marks = Marks(self._writes.settle)
        self.values = TensorMap[Tensor]()  # tensors without memory -> their constants
        self.literals = TensorMap[Tensor]()  # tensors written out, as in x[:, [-1]]
        self._picked = TensorMap[Axis]()  # indices -> the experts that they pick
        self._read_as_data = TensorMap[bool]()

    # What rules call

    def register(self, name: str, tensor: Tensor, *, frozen: Collection[int] = ()) -> None:
        """Give a parameter or buffer its own atoms, frozen along some of its axes."""
        axes = [[Atom(size, frozen=dim in frozen)] for dim, size in enumerate(tensor.shape)]
        self.pieces[name] = [Piece((), axes)]
        self.names[id(tensor)] = name
        self._axes[tensor] = axes
        self._weights[tensor] = frozenset({name})

    def carry(self, name: str, tensor: Tensor) -> None:
        """Let a recorded tensor (random numbers, what other processes sent) be permuted with the axes it has.

        An axis along which it was drawn alike for all entries gets an atom of its own: the numbers as they fell are
        exchanged with the neurons that they fell on.
        """
        axes = [
            new_axis(size) if all(is_constant(atom) for atom in flat(axis)) else axis
            for axis, size in zip(self._axes[tensor], tensor.shape, strict=True)
        ]
        if name in self.pieces:
            for known, axis in zip(self.pieces[name][0].axes, axes, strict=True):
                unify_axes(known, axis)
        self.assign(tensor, axes)
        self.pieces.setdefault(name, [Piece((), axes)])
        self._weights.pop(tensor)
        self._writes.drawn(tensor)

    def adopt(self, tensor: Tensor, other: Tensor) -> None:
        """Take all that is known of `other` for another tensor of its shape."""
        self._writes.settle(other)
        self.assign(tensor, self._axes[other] if other in self._axes else self.axes(other))
        if (names := self._weights.get(other)) is not None:
            self._weights[tensor] = names
        self._ancestry.adopt(tensor, other)
        self._writes.memory.adopt(tensor, other)

    def show(self, tensor: Tensor, base: Tensor, start: int, stop: int) -> bool:
        """Take a tensor for a view of a part of another's memory; False unless that part holds constants."""
        if not self._writes.is_constant(base, (start, stop)):
            return False
        self.assign_constant(tensor)
        self._weights[tensor] = frozenset()
        self._writes.memory.add(tensor, base, (start, stop))
        return True

    def axes(self, tensor: Tensor) -> list[Axis]:
        """The tensor's axes, for one use. A tensor of unknown origin is data: its axes are frozen."""
        self._writes.settle(tensor)
        if tensor not in self._axes:
            self._axes[tensor] = [new_axis(size, frozen=True) for size in tensor.shape]
        return [renewed(axis) for axis in self._axes[tensor]]

    def known_axes(self, tensor: Tensor) -> list[Axis] | None:
        """The tensor's axes as they are; None where no call has met it."""
        return self._axes.get(tensor)

    def assign(self, tensor: Tensor, axes: list[Axis]) -> None:
        """Say what the axes of an operator's output are."""
        sizes = [axis_size(axis) for axis in axes]
        if sizes != list(tensor.shape):
            raise RuntimeError(f"expected axes of sizes {list(tensor.shape)}, got {sizes}")
        self._axes[tensor] = axes
        self.witnesses.append(axes)

    def assign_data(self, tensor: Tensor) -> None:
        """Say that the axes of an output are not exchangeable."""
        self._axes[tensor] = [new_axis(size, frozen=True) for size in tensor.shape]

    def assign_constant(self, tensor: Tensor) -> None:
        """Say that an output is constant, or noise alike, along all its axes."""
        self._axes[tensor] = [new_axis(size, constant=True) for size in tensor.shape]

    def unify(self, left: Axis, right: Axis) -> None:
        """Tie two axes together."""
        unify_axes(left, right)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Say that the entries along an axis are not exchangeable."""
        freeze(axis, reason)

    def witness(self, axes: list[Axis]) -> None:
        """Record a hidden tensor, so that atoms it does not hold together are known to be independent."""
        self.witnesses.append(axes)

    def point(self, tensor: Tensor, axis: Axis, reason: str) -> None:
        """Say that a tensor's values are positions along an axis, which is frozen once they are read as numbers."""
        self._marks.point(tensor, axis, reason)

    def pointed(self, tensor: Tensor) -> list[Axis]:
        """The axes that the values of a tensor are positions along."""
        return self._marks.pointed(tensor)

    def address(self, axis: Axis, index: Tensor) -> bool:
        """Take entries of an axis at the positions in an index, and say whether that leaves them exchangeable."""
        return self._marks.address(axis, index)

    def single_out(self, tensor: Tensor, axis: Axis, reason: str) -> None:
        """Say that a tensor holds the values at one position of an axis, which is frozen once they are read."""
        self._marks.single_out(tensor, axis, reason)

    def read(self, tensor: Tensor) -> None:
        """Note that a tensor's values are used, as an output's are: axes whose positions they reveal are frozen."""
        self._marks.read(tensor)

    def reduce(self, tensor: Tensor, axis: Axis) -> None:
        """Record that a symmetric function of the entries along an axis of an activation was taken."""
        if self.is_activation(tensor):
            self.tag([atom for atom in flat(axis) if atom.size > 1], "reduced")

    def imply(self, tokens: Axis, experts: Axis) -> None:
        """Say that each entry of one axis belongs to one entry of another, as tokens sorted by expert do."""
        for token_atom, expert_atom in zip(flat(tokens)[:1], flat(experts)[:1], strict=False):
            known = self.implied.setdefault(token_atom, expert_atom)
            unify_axes([known], [expert_atom])

    def pick(self, index: Tensor, places: Axis, experts: Axis) -> None:
        """Say that an index takes at each of its places what belongs to one expert; no `places` leave that open.

        What one index takes from several weights belongs to the same experts.
        """
        if (known := self._picked.get(index)) is not None:
            unify_axes(experts, known)  # so that a router keeps the reason of the choice
        self._picked[index] = experts
        if places:
            self._read_as_data[index] = True
            self.picks.append((places, experts))

    def picks_by_data(self, index: Tensor) -> bool:
        """Whether an index has picked experts, so that nothing is exchanged along with its values any more."""
        return index in self._read_as_data

    def tag(self, axis: Axis, tag: str) -> None:
        """Leave a mark on an axis, by which groups are named later."""
        self.tags.append((axis, tag))

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor is computed from parameters alone."""
        return bool(self._weights.get(tensor))

    def is_activation(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on data."""
        return tensor not in self._weights

    def used(self, weight: Tensor, axis: Axis, role: Role, operator: str = "") -> None:
        """Record that an axis of a weight feeds neurons ("incoming") or reads them ("outgoing")."""
        names = self._weights.get(weight)
        if names:
            self.uses.append(Use(names, axis, role, operator))

    def broadcast(self, out: Tensor, tensors: Iterable[Tensor]) -> None:
        """The rule of pointwise operators: axes of one position, where not of length 1, are tied."""
        axes: list[Axis] = [[] for _ in out.shape]
        tensors = list(tensors)
        self._note_created_axes(tensors)
        for tensor in tensors:
            offset = out.dim() - tensor.dim()
            for i, axis in enumerate(self.axes(tensor)):
                size, j = out.shape[offset + i], offset + i
                if tensor.shape[i] not in (1, size):
                    freeze(axis, "an operator that is not pointwise along it")
                    axis = new_axis(size, frozen=True)
                if (tensor.shape[i] == 1 and size > 1) or not axis:
                    continue
                if not axes[j] or _is_constant_axis(axes[j]):
                    axes[j] = axis
                elif not _is_constant_axis(axis):
                    unify_axes(axes[j], axis)
        for i, size in enumerate(out.shape):
            if size > 1 and not axes[i]:
                axes[i] = new_axis(size, constant=True)
        self.assign(out, axes)

    def _note_created_axes(self, tensors: list[Tensor]) -> None:
        """A weight along whose axis no activation varies feeds the neurons there, as centres and frequencies do."""
        active = [self.axes(tensor)[::-1] for tensor in tensors if tensor.dim() and self.is_activation(tensor)]
        for tensor in tensors:
            if not active or not self.is_weight(tensor):
                continue
            for i, axis in enumerate(self.axes(tensor)[::-1]):
                if axis_size(axis) > 1 and all(i >= len(axes) or _is_constant_axis(axes[i]) for axes in active):
                    self.used(tensor, axis, "incoming")

    # The dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.observe(func, args, kwargs, result)
        return result

    def observe(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Carry the axes through one call. A rule that fails freezes what the call touches, and nothing else."""
        call = operator_call(func, args, kwargs, result)
        self.n_operators += 1
        written = written_in_place(func, call)
        for tensor in written:
            self._begin_write(tensor)
        is_read = self._writes.read_by(call)
        try:
            if is_read:
                self._apply_rule(func, call)
        except Exception as error:
            text = next(iter(str(error).splitlines()), "")
            self.failed.setdefault(str(func), f"{type(error).__name__}: {text}")
            self.bar(call, f"{FAILED_RULE} {func} ({type(error).__name__}: {text})")
        self._link(func, call)
        self._writes.done(call, written)

    def _begin_write(self, tensor: Tensor) -> None:
        if (base := self._writes.begun(tensor)) is not None:
            self.read(base)

    def works_by_entry(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        """Whether a call works entry by entry, found by trial."""
        call = operator_call(func, args, kwargs, result)
        return is_elementwise(func, call.arguments, call.outputs)

    def bar(self, call: OperatorCall, reason: str) -> None:
        """Freeze all that a call reads, and take what it returns for data."""
        for tensor in call.inputs:
            for axis in self.axes(tensor):
                freeze(axis, reason)
        for out in call.outputs:
            self.assign_data(out)

    def _apply_rule(self, func: Any, call: OperatorCall) -> None:
        """Find the operator's rule and apply it, or freeze what an unknown operator touches."""
        rule = rule_for(func)
        self._marks.follow(call)
        tie_mixed_indices(call, self.known_axes, by_entry=rule is None)
        if rule is not None:
            rule(self, call)
            tie_lost_indices(call, self.known_axes)
        elif torch.Tag.pointwise in func.tags and len(call.outputs) == 1:
            self.broadcast(call.out, call.inputs)
        elif call.inputs and is_elementwise(func, call.arguments, call.outputs):
            for out in call.outputs:
                self.broadcast(out, call.inputs)
        elif not call.inputs:
            for out in call.outputs:
                if call.name in CONSTANT_FACTORIES | NOISE_FACTORIES:
                    self.assign_constant(out)
                else:
                    self.assign_data(out)
        elif call.outputs:
            self.unknown[str(func)] += 1
            self.bar(call, f"{UNKNOWN_OPERATOR} {func}: teach its rule with register_rule")

    def _link(self, func: Any, call: OperatorCall) -> None:
        """Keep origins, ancestry and view bases, which need no rule."""
        if not call.inputs:
            for out in call.outputs:
                self._weights[out] = frozenset()
            return
        origins = [self._weights.get(tensor) for tensor in call.inputs]
        names = [origin for origin in origins if origin is not None]
        active = [tensor for tensor in call.inputs if self.is_activation(tensor)]
        if len(active) == 2 and call.name in ("add", "add_") and self._ancestry.is_skip(*active):
            for axis in self._axes[call.out]:
                self.tag(axis, "skip")
        contracts = call.name in CONTRACTIONS and any(names)
        aliases = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
        for out in call.outputs:
            if call.name in PICKS and self.is_weight(call.inputs[0]) and call.inputs[0].dim() > 2:
                self._weights[out] = frozenset(self._weights[call.inputs[0]])  # an expert's, whichever it is
            elif not any(origin is None for origin in origins):
                self._weights[out] = frozenset[str]().union(*names)
            else:
                self._weights.pop(out)
                self._ancestry.add(out, active, contracts=contracts)
            if aliases:
                self._writes.memory.add(out, call.inputs[0])
        if aliases and call.outputs:
            self._writes.note_views(call)


PICKS = frozenset({"index", "_unsafe_index", "index_select"})
CONTRACTIONS = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "_grouped_mm", "convolution", "embedding", "_trilinear"}
)


def _is_constant_axis(axis: Axis) -> bool:
    return all(is_constant(atom) for atom in flat(axis))
