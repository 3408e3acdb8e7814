"""Groups named by hand: patterns over parameter names, with the axis along which the neurons run."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn

from lightning_topo.neurons._group import Kind, NeuronGroup, ParamSlice, Role, Step, owner
from lightning_topo.neurons._one_run import named_state

Axis = int | tuple[int, str] | tuple[int, str, tuple[int, int]]


def declare_neurons(
    model: nn.Module,
    name: str,
    axes: Mapping[str, Axis],
    *,
    kind: Kind = "unit",
    sizes: Mapping[str, int] | None = None,
) -> list[NeuronGroup]:
    """Declare groups of neurons by the axis along which the neurons run in each parameter.

    The groups have the status "declared". To verify them, pass them to `find_neuron_groups(declared=...)`,
    `verify_groups` or `TopologyMonitor(groups=...)`.

    Args:
        model: The model with the parameters.
        name: The name of the group. If names in `axes` contain a `*`, put one here, too: it becomes the same text.
        axes: The axis of the neurons in each parameter or buffer, by its name. Start with the weight that feeds them.
            A `*` in a name stands for any text, and parameters with the same text make up one group:
            `"blocks.*.fc.weight"` declares a group per block. Names without a `*` belong to every group.
        kind: The kind of the neurons, see `NeuronGroup`.
        sizes: The size of each name in the axis expressions explained below, such as `{"h": 8}`.

    If neurons share an axis with other things, give `(axis, expression)` in place of the axis. The expression lists the
    factors of the axis, outermost first, as names or numbers: `[h]` counts neurons, `(h)` counts blocks (neurons are
    exchanged only within a block), and a bare factor counts entries that belong to each neuron. `(0, "3 [h] d")` are
    the heads of a fused query-key-value projection, `(1, "(h) [d]")` the value dimensions inside each head. One name
    per expression may be missing in `sizes`. `(axis, expression, (start, stop))` uses only the entries from `start` to
    `stop - 1` of the axis.

    Raises:
        ValueError: A pattern matches nothing, or a size, an axis, a part or an expression does not fit a parameter.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [group] = declare_neurons(model, "hidden", {"0.weight": 0, "0.bias": 0, "2.weight": 1})
    >>> group.name, group.n, group.status
    ('hidden', 8, 'declared')
    """
    parameters, buffers = named_state(model)
    tensors = {**parameters, **buffers}
    members: defaultdict[tuple[str, ...], list[tuple[int, str, Axis]]] = defaultdict(list)
    for place, (pattern, axis) in enumerate(axes.items()):
        found = [(param, match.groups()) for param in tensors if (match := _regex(pattern).fullmatch(param))]
        if not found:
            close = ", ".join(list(tensors)[:4])
            raise ValueError(f"expected a parameter that matches {pattern!r}, got only {close}, ...")
        for param, stars in found:
            members[stars].append((place, param, axis))
    everywhere = members.pop((), [])
    groups = []
    for stars, pieces in (members or {(): []}).items():
        filled = name
        for star in stars:
            filled = filled.replace("*", star, 1)
        ordered = [(param, axis) for _, param, axis in sorted([*everywhere, *pieces], key=itemgetter(0))]
        groups.append(_group(filled, kind, ordered, tensors, parameters, sizes or {}))
    return groups


@dataclass(frozen=True, slots=True)
class Rows:
    """Declares the rows of each parameter that matches `pattern` as a cloud; the result of the function `rows`.

    No model is needed yet: `resolve` looks the parameters up. `pattern` is the name of a parameter, or a pattern with
    `*` for any text. Raises `ValueError` if it is empty.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ValueError("expected the name of a parameter, or a pattern with *, got an empty string")

    def resolve(self, module: nn.Module) -> list[NeuronGroup]:
        """Return a group for each parameter of `module` that matches the pattern, with the status "declared".

        A group is named `<path of the parameter's module>.rows`, or `<parameter>.rows` if several parameters of one
        module match. Raises `ValueError` if no parameter matches, or one is a scalar.
        """
        parameters, _ = named_state(module)
        found = {name: p for name, p in parameters.items() if _regex(self.pattern).fullmatch(name)}
        if not found:
            raise ValueError(f"expected a parameter that matches {self.pattern!r}, got only {', '.join(parameters)}")
        scalars = [name for name, p in found.items() if p.dim() == 0]
        if scalars:
            raise ValueError(f"expected a parameter with rows, got the scalar {scalars[0]!r}")
        owners = [owner(name) for name in found]
        return [
            NeuronGroup(
                f"{path if owners.count(path) == 1 else name}.rows",
                "unit",
                len(p),
                (),
                (ParamSlice(name, (), (0,), p.requires_grad),),
                "declared",
            )
            for path, (name, p) in zip(owners, found.items(), strict=True)
        ]


def rows(pattern: str) -> Rows:
    """Declare the rows of a parameter as a cloud: tokens of an embedding, codes of a codebook, learned queries.

    Such rows are not exchangeable (each row of an embedding belongs to one token), so the group is measured but not
    verified. A `*` in the pattern stands for any text; each matching parameter makes up a group. Pass the result to a
    callback, as in `TopologyMonitor(groups=["auto", rows("tok_emb.weight")])`.

    >>> model = nn.ModuleDict({"tok_emb": nn.Embedding(50, 8), "pos_emb": nn.Embedding(16, 8)})
    >>> [(group.name, group.n, group.status) for group in rows("*_emb.weight").resolve(model)]
    [('tok_emb.rows', 50, 'declared'), ('pos_emb.rows', 16, 'declared')]
    """
    return Rows(pattern)


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(re.escape(part) for part in pattern.split("*")))


def _group(
    name: str,
    kind: Kind,
    pieces: Sequence[tuple[str, Axis]],
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    sizes: Mapping[str, int],
) -> NeuronGroup:
    slices: list[ParamSlice] = []
    shape: list[int] = []
    for param, axis in pieces:
        tensor = tensors[param]
        steps, dims = _steps(param, tensor, axis, sizes)
        trainable = param in parameters and tensor.requires_grad
        piece = ParamSlice(param, steps, dims, trainable, _role(len(slices), param, tensor, dims, parameters))
        found = list(piece.view(torch.empty(tensor.shape, device="meta")).shape[: len(dims)])
        if shape and found != shape:
            raise ValueError(
                f"parameter {param!r}, axis {axis if isinstance(axis, int) else axis[0]}: expected "
                f"{_words(shape)} as in {slices[0].param!r}, found {_words(found)}"
            )
        shape = found
        slices.append(piece)
    if not slices:
        raise ValueError(f"expected at least one pattern for group {name!r}, got none")
    return NeuronGroup(name, kind, shape[-1], tuple(shape[:-1]), tuple(slices), "declared")


def _words(shape: Sequence[int]) -> str:
    """A shape in words: the blocks and neurons that an axis holds."""
    blocks = f" in each of {' x '.join(map(str, shape[:-1]))} blocks" if len(shape) > 1 else ""
    return f"size {shape[-1]}{blocks}"


def _role(index: int, param: str, tensor: Tensor, dims: tuple[int, ...], parameters: Mapping[str, Tensor]) -> Role:
    if param not in parameters:
        return "buffer"
    if tensor.dim() < 2:
        return "elementwise"
    return "incoming" if index == 0 or dims[-1] < tensor.dim() - 1 else "outgoing"


def _steps(
    param: str, tensor: Tensor, axis: Axis, sizes: Mapping[str, int]
) -> tuple[tuple[Step, ...], tuple[int, ...]]:
    """The refinement that brings out the neurons' axis, and where blocks and neurons then are."""
    dim = axis if isinstance(axis, int) else axis[0]
    expression = "[n]" if isinstance(axis, int) else axis[1]
    part = axis[2] if isinstance(axis, tuple) and len(axis) == 3 else None
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(
            f"parameter {param!r}, axis {dim}: expected an axis below {tensor.dim()}, as its shape is "
            f"{tuple(tensor.shape)}"
        )
    dim %= tensor.dim()
    steps: list[Step] = []
    length = tensor.shape[dim]
    if part is not None:
        start, stop = part
        if not 0 <= start < stop <= length:
            raise ValueError(f"parameter {param!r}, axis {dim}: expected a part of 0..{length}, found {part}")
        steps.append(("narrow", dim, start, stop - start))
        length = stop - start
    tokens = expression.split()
    factors = _factors(param, dim, length, tokens, sizes)
    neurons = [i for i, token in enumerate(tokens) if token.startswith("[")]
    blocks = [i for i, token in enumerate(tokens) if token.startswith("(")]
    if len(neurons) != 1:
        raise ValueError(f"parameter {param!r}, axis {dim}: expected one name in square brackets, found {expression!r}")
    if len(tokens) > 1:
        steps.append(("unflatten", dim, tuple(factors)))
    return tuple(steps), tuple(dim + i for i in [*blocks, *neurons])


def _factors(param: str, dim: int, length: int, tokens: Sequence[str], sizes: Mapping[str, int]) -> list[int]:
    """The size of each factor, the open one solved for."""
    names = [token.strip("[]()") for token in tokens]
    known = [int(name) if name.isdigit() else sizes.get(name, 0) for name in names]
    product, open_ones = 1, [i for i, size in enumerate(known) if size == 0]
    for size in known:
        product *= size or 1
    where, text = f"parameter {param!r}, axis {dim}", " ".join(tokens)
    if len(open_ones) > 1:
        missing = ", ".join(names[i] for i in open_ones)
        raise ValueError(f"{where}: expected sizes for all but one of {missing} in {text!r}")
    if length % product or (not open_ones and length != product):
        multiple = "a multiple of " if open_ones else ""
        raise ValueError(f"{where}: expected size {multiple}{product} ({text!r}), found {length}")
    return [size or length // product for size in known]
