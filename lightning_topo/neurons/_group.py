"""A group of neurons: which entries of which parameters make up each of n exchangeable neurons."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lightning_topo._memory import IN_CACHE
from lightning_topo._tape.names import clean_name

Kind = Literal["unit", "channel", "head", "head_dim", "recurrent", "expert", "residual"]
Status = Literal["verified", "inert", "unverified", "incoming_only", "declared"]
Role = Literal["incoming", "outgoing", "elementwise", "buffer"]
Step = tuple[Literal["narrow"], int, int, int] | tuple[Literal["unflatten"], int, tuple[int, ...]]

KINDS: tuple[Kind, ...] = get_args(Kind)

_TILE = 128  # columns that are transposed at once, for the cache's sake


@dataclass(frozen=True, slots=True)
class ParamSlice:
    """Selects the part of one parameter (or buffer) that belongs to a group, and the axes along which its neurons run.

    Attributes:
        param: The name of the parameter. A `*` stands for the neuron's index: for `experts.*.weight` the parameters
            `experts.0.weight`, `experts.1.weight`, ... are stacked along a new first axis.
        steps: Views to take of the parameter, in order: `("narrow", dim, start, length)` or
            `("unflatten", dim, sizes)`, each with the meaning of the `torch.Tensor` method of that name.
        dims: The axes of the resulting view along which the group's blocks run, in order, and last the axis along which
            its neurons run. All other axes are features of a neuron.
        trainable: Whether the parameter is trained; False for a buffer.
        role: "incoming" if the entries feed the neurons, "outgoing" if they read them, "elementwise" for neither (a
            bias, a gain), "buffer" for a buffer, or for a frozen parameter that the steps write, as a teacher's.

    >>> ParamSlice("attn.qkv.weight", (("unflatten", 0, (3, 4, 8)),), (1,)).view(torch.zeros(96, 32)).shape
    torch.Size([4, 3, 8, 32])
    """

    param: str
    steps: tuple[Step, ...] = ()
    dims: tuple[int, ...] = (0,)
    trainable: bool = True
    role: Role = "incoming"

    def names(self, n: int) -> list[str]:
        """Return the names of the parameters in the slice, in a group of n neurons.

        That is one name; or, if `param` contains a `*`, one for each neuron i, with i in place of the `*`.
        """
        return [self.param.replace("*", str(i)) for i in range(n)] if "*" in self.param else [self.param]

    def view(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return the slice of a tensor as a view of shape (*block_shape, n, *features).

        `tensor` has the shape of the parameter, or of the stack if `param` contains a `*`. A complex tensor gets one
        more feature axis, of size 2. Raises `RuntimeError` or `IndexError` if the tensor's shape does not fit.
        """
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        for step in self.steps:
            tensor = tensor.narrow(*step[1:]) if step[0] == "narrow" else tensor.unflatten(step[1], step[2])
        rest = [dim for dim in range(tensor.dim()) if dim not in self.dims]
        return tensor.permute(*self.dims, *rest)


@dataclass(frozen=True, slots=True)
class NeuronGroup:
    """Describes a group of n exchangeable neurons as slices of named parameters.

    If the group has blocks, each block holds n neurons and is a cloud of its own: neurons of different blocks are not
    exchangeable. The group holds names and shapes only, no tensors, so it can be pickled and compared.

    Attributes:
        name: The name of the group, in most cases the path of the module that feeds its neurons.
        kind: The kind of neuron: "unit", "channel", "head", "head_dim" (a dimension inside each head), "recurrent",
            "expert" or "residual".
        n: The number of neurons in each block.
        block_shape: The number of blocks along each axis of blocks; () for a single block.
        slices: The parts of parameters that belong to the neurons.
        status: How far the neurons are proved to be exchangeable. "verified": permuting them keeps the output as it is,
            and permutes the gradient alike. "inert": the output depends too little on them to tell. "incoming_only":
            not exchangeable as found, or the model cannot be traced; the group keeps only the weights and biases that
            feed the neurons. "unverified": not checked. "declared": named by the user and not checked.
        reason: The reason for the status, or a limit of the proof; may be empty.

    Raises:
        ValueError: n is below 1, or the `dims` of a slice do not fit `block_shape`.

    >>> group = NeuronGroup("net.0", "unit", 2, (), (ParamSlice("net.0.weight"), ParamSlice("net.0.bias")))
    >>> group.gather({"net.0.weight": torch.tensor([[1, 2], [3, 4]]), "net.0.bias": torch.tensor([5, 6])})
    tensor([[1, 2, 5],
            [3, 4, 6]])
    """

    name: str
    kind: Kind
    n: int
    block_shape: tuple[int, ...]
    slices: tuple[ParamSlice, ...]
    status: Status = "unverified"
    reason: str = ""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"expected a group of at least one neuron, got n = {self.n} in {self.name!r}")
        for piece in self.slices:
            if len(piece.dims) != len(self.block_shape) + 1:
                raise ValueError(
                    f"expected {len(self.block_shape) + 1} dims (blocks, then neurons) of {piece.param!r} in "
                    f"{self.name!r}, got {piece.dims}"
                )

    @property
    def n_blocks(self) -> int:
        """The number of blocks: the product of `block_shape`. Each block is a cloud of n neurons."""
        return math.prod(self.block_shape)

    @property
    def params(self) -> tuple[str, ...]:
        """The names of the parameters and buffers in the group, each once.

        If every neuron has a parameter of its own, such as `experts.0.weight`, `experts.1.weight`, ..., the pattern
        `experts.*.weight` stands for all of them; `self.parameter_names` lists the single names.
        """
        return tuple(dict.fromkeys(piece.param for piece in self.slices))

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters and buffers in the group, each once, with a name for each neuron in place of `*`.

        >>> NeuronGroup("moe", "expert", 2, (), (ParamSlice("moe.*.weight"), ParamSlice("gate"))).parameter_names
        ('moe.0.weight', 'moe.1.weight', 'gate')
        """
        return tuple(dict.fromkeys(name for piece in self.slices for name in piece.names(self.n)))

    @property
    def own_parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters that make up the neurons: no buffers, and none that only follow, as a teacher's.

        >>> mean = ParamSlice("norm.running_mean", trainable=False, role="buffer")
        >>> NeuronGroup("net", "unit", 2, (), (ParamSlice("net.weight"), mean)).own_parameter_names
        ('net.weight',)
        """
        return tuple(
            dict.fromkeys(name for piece in self.slices if piece.role != "buffer" for name in piece.names(self.n))
        )

    def dim(self, tensors: Mapping[str, Tensor]) -> int:
        """Return the number d of columns of `self.gather(tensors)`; 0 if no key of `tensors` belongs to the group.

        Raises `ValueError` if a tensor does not have its parameter's shape.
        """
        return sum(self._width(view) for view in self._views(tensors))

    def widths(self, tensors: Mapping[str, Tensor]) -> list[tuple[ParamSlice, int]]:
        """Return the slices whose tensors are there, and how many columns of `self.gather(tensors)` each fills.

        In the order of the columns; without tensors, an empty list. Raises `ValueError` if a tensor does not have its
        parameter's shape.
        """
        found = ((piece, self._view(piece, tensors)) for piece in self.slices)
        return [(piece, self._width(view)) for piece, view in found if view is not None]

    def gather(
        self, tensors: Mapping[str, Tensor], out: Shaped[Tensor, "rows d"] | None = None
    ) -> Shaped[Tensor, "rows d"]:
        """Return the neurons as the rows of one detached matrix of shape (n_blocks * n, d), block after block.

        `tensors` maps parameter names to the parameters, their gradients or optimizer state. Slices whose parameter is
        not a key are left out; the others fill the columns in slice order. Values are not centred. Tensors of different
        dtypes are promoted to a common one. If `out` of the result's shape is given, it is filled and returned.

        Raises:
            ValueError: No key belongs to the group, a tensor does not have its parameter's shape, or `out` has another
                shape.
        """
        views = self._views(tensors)
        if not views:
            raise ValueError(
                f"expected tensors keyed by parameter name, at least one of {list(self.params)}, "
                f"got keys {list(tensors)[:5]}"
            )
        rows, widths = self.n_blocks * self.n, [self._width(view) for view in views]
        if out is None:
            dtype = views[0].dtype
            for view in views[1:]:
                dtype = torch.promote_types(dtype, view.dtype)
            out = torch.empty(rows, sum(widths), dtype=dtype, device=views[0].device)
        if out.shape != (rows, sum(widths)):
            raise ValueError(f"expected out of shape {(rows, sum(widths))}, got {tuple(out.shape)}")
        for view, column in zip(views, out.split(widths, dim=1), strict=True):
            _fill(column, view, len(self.block_shape) + 1)
        return out

    def permute(
        self, tensors: Mapping[str, Tensor], permutation: Int[Tensor, " rows"]
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """Return the tensors with the neurons reordered: `self.gather(self.permute(t, p))` equals `self.gather(t)[p]`.

        `permutation` indexes either the n neurons, with the same order in every block, or all n_blocks * n rows. In the
        second case it must keep each row in its block, which is not checked. Tensors of the group are copied, so the
        caller's are not changed; names that share one tensor share its copy. Raises `ValueError` for a permutation of
        another length.
        """
        copies: dict[int, Tensor] = {}
        for piece in self._present(tensors):
            for tensor in (tensors[name] for name in piece.names(self.n)):
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.detach().clone()
        permuted = {name: copies.get(id(tensor), tensor) for name, tensor in tensors.items()}
        self.permute_(permuted, permutation)
        return permuted

    def permute_(self, tensors: Mapping[str, Tensor], permutation: Int[Tensor, " rows"]) -> None:
        """Reorder the neurons as `permute` does, in the tensors themselves: none changes if one has another shape."""
        rows = self.n_blocks * self.n
        if len(permutation) == self.n and self.n_blocks > 1:
            offsets = torch.arange(self.n_blocks, device=permutation.device) * self.n
            permutation = (offsets[:, None] + permutation[None, :]).flatten()
        if len(permutation) != rows:
            raise ValueError(f"expected a permutation of {self.n} neurons or {rows} rows, got {len(permutation)}")
        present = list(self._present(tensors))
        views = {piece: piece.view(tensors[piece.param].detach()) for piece in present if "*" not in piece.param}
        for piece in present:
            if piece in views:
                _reorder(views[piece], permutation.to(views[piece].device), len(self.block_shape) + 1)
                continue
            parts = [tensors[name].detach() for name in piece.names(self.n)]
            for part, source in zip(parts, torch.stack(parts)[permutation], strict=True):
                part.copy_(source)

    def with_status(self, status: Status, reason: str = "") -> "NeuronGroup":
        """Return a copy of the group with another status and reason."""
        return replace(self, status=status, reason=reason)

    def incoming_only(self, reason: str) -> "NeuronGroup":
        """Return a copy with status "incoming_only" that keeps only the incoming weights and their modules' biases.

        Without incoming weights it keeps the first slice.
        """
        owners = {owner(piece.param) for piece in self.slices if piece.role == "incoming"}
        kept = tuple(
            piece
            for piece in self.slices
            if piece.role == "incoming" or (piece.role == "elementwise" and owner(piece.param) in owners)
        )
        return replace(self, slices=kept or self.slices[:1], status="incoming_only", reason=reason)

    def _present(self, tensors: Mapping[str, Tensor]) -> Iterator[ParamSlice]:
        """The slices whose tensors are there."""
        return (piece for piece in self.slices if all(name in tensors for name in piece.names(self.n)))

    def _views(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The group's slices of those tensors that are there."""
        found = [view for piece in self.slices if (view := self._view(piece, tensors)) is not None]
        if found or not tensors:
            return found
        plain = _plain_names(tensors)
        return [view for piece in self.slices if (view := self._view(piece, plain)) is not None]

    def _view(self, piece: ParamSlice, tensors: Mapping[str, Tensor]) -> Tensor | None:
        if any(name not in tensors for name in piece.names(self.n)):
            return None
        parts = [tensors[name].detach() for name in piece.names(self.n)]
        tensor = torch.stack(parts) if "*" in piece.param else parts[0]
        try:
            view = piece.view(tensor)
        except (RuntimeError, IndexError) as error:
            raise ValueError(self._mismatch(piece, tensor)) from error
        if view.shape[: len(piece.dims)] != (*self.block_shape, self.n):
            raise ValueError(self._mismatch(piece, tensor))
        return view

    def _mismatch(self, piece: ParamSlice, tensor: Tensor) -> str:
        return (
            f"expected a tensor shaped as parameter {piece.param!r} of group {self.name!r}, with axes "
            f"{(*self.block_shape, self.n)} at dims {piece.dims} after {list(piece.steps)}, "
            f"got shape {tuple(tensor.shape)}"
        )

    def _width(self, view: Tensor) -> int:
        return math.prod(view.shape[len(self.block_shape) + 1 :])


def _features_first(view: Tensor, n_leading: int) -> Tensor:
    """A view (*blocks, n, *features) as (*features, *blocks, n)."""
    return view.permute(*range(n_leading, view.dim()), *range(n_leading))


def _is_columns(view: Tensor, n_leading: int) -> bool:
    """Whether neurons, not their features, lie next to each other in memory."""
    strides = view.stride()
    return view.dim() > n_leading and min(strides[:n_leading]) < min(strides[n_leading:])


def _reorder(view: Tensor, permutation: Tensor, n_leading: int) -> None:
    """Reorder the rows (*blocks, n) of a view in place, along the memory."""
    if _is_columns(view, n_leading):
        columns = _features_first(view, n_leading)
        for part in _bands(columns, 0, n_leading):
            part.copy_(part.flatten(-n_leading).index_select(-1, permutation).view(part.shape))
    else:
        for part in _bands(view, n_leading, n_leading):
            part.copy_(part.flatten(0, n_leading - 1).index_select(0, permutation).view(part.shape))


def _bands(view: Tensor, dim: int, n_leading: int) -> Sequence[Tensor]:
    """A view in parts along its features: what is copied of one stays in a processor's cache."""
    if view.device.type != "cpu" or view.dim() <= n_leading or view.numel() <= IN_CACHE:
        return (view,)
    return view.split(max(1, IN_CACHE * view.shape[dim] // view.numel()), dim=dim)


def _fill(column: Tensor, view: Tensor, n_leading: int) -> None:
    """Copy a view (*blocks, n, *features) into columns (rows, d)."""
    if _is_columns(view, n_leading):
        packed = _features_first(view, n_leading).reshape(column.shape[1], column.shape[0])
        tile = torch.empty(len(column) * min(_TILE, len(packed)), dtype=view.dtype, device=view.device)
        for target, part in zip(column.split(_TILE, dim=1), packed.split(_TILE), strict=True):
            # torch transposes fast only between contiguous matrices.
            target.copy_(tile[: part.numel()].view(target.shape).copy_(part.contiguous().T))
    else:
        features = view.shape[n_leading:] or (1,)
        column.unflatten(0, view.shape[:n_leading]).unflatten(-1, features).copy_(
            view if view.dim() > n_leading else view.unsqueeze(-1)
        )


def owner(param: str) -> str:
    """The module path that a person would name for a parameter.

    >>> owner("net.0.weight"), owner("fc.parametrizations.weight.original0"), owner("scale")
    ('net.0', 'fc', 'scale')
    """
    path = param.split(".parametrizations.")[0] if ".parametrizations." in param else param.rpartition(".")[0]
    return path or param


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the bare module gives them."""
    cleaned = {clean_name(name): tensor for name, tensor in tensors.items()}
    if all(name.startswith("module.") for name in cleaned):
        return {name.removeprefix("module."): tensor for name, tensor in cleaned.items()}
    return cleaned


def derangement(n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random cyclic permutation of n neurons: none stays in its place (n > 1)."""
    order = torch.randperm(n, generator=generator)
    result = torch.empty_like(order)
    result[order] = order.roll(1)
    return result


def block_derangement(group: NeuronGroup, generator: torch.Generator) -> Int[Tensor, " rows"]:
    """A derangement of its own for every block, as an index of rows."""
    blocks: Iterable[Tensor] = (block * group.n + derangement(group.n, generator) for block in range(group.n_blocks))
    return torch.cat(list(blocks))
