"""Small models around an operator, and the axes that its rule leaves free, each held against the operator itself."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons import NeuronGroup, ParamSlice, find_neuron_groups
from lightning_topo.neurons._assembly import _with_copies, cells_of
from lightning_topo.neurons._coupling import Atom
from lightning_topo.neurons._trace import CouplingTrace

X = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Linear(5, 12), something between, Linear(12, 3)."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None, width: int = 12) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(5, 12), between, nn.Linear(width, 3)
        self.gain = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        assert self.between is not None
        return self.last(self.between(self.first(x)))


class Made(nn.Module):
    """Modules and parameters by name, and a function of them and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def centres(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype))


def free_axes(function: Callable[..., Any], *shapes: tuple[int, ...]) -> list[int]:
    """The sizes of what may be exchanged in tensors of these shapes, according to the rules of a function's operators.

    Each is proved on random numbers: where it is permuted in the arguments it is in the results, and nothing else
    changes.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {str(i): torch.randn(shape, generator=generator, dtype=torch.float64) for i, shape in enumerate(shapes)}
    trace = CouplingTrace()
    for name, tensor in tensors.items():
        trace.register(name, tensor)
    with trace:
        made = _tensors(function(*tensors.values()))
    for out in made.values():
        trace.read(out)
    inside: defaultdict[Atom, list[ParamSlice]] = defaultdict(list)
    outside: defaultdict[Atom, list[ParamSlice]] = defaultdict(list)
    known = [(name, piece.steps, _with_copies(piece)) for name in tensors for piece in trace.pieces[name]]
    known += [(name, (), axes) for name, out in made.items() if (axes := trace.known_axes(out)) is not None]
    for name, before, axes in known:
        for steps, cells in cells_of(axes):
            for dim, atom in enumerate(cells):
                if atom is not None:
                    (inside if name in tensors else outside)[atom].append(ParamSlice(name, (*before, *steps), (dim,)))
    free = [atom for atom in inside if not atom.frozen and atom.size > 1 and not atom.copies]
    for atom in free:
        for _ in range(3):
            order = torch.randperm(atom.size, generator=generator)
            moved = NeuronGroup("in", "unit", atom.size, (), tuple(inside[atom])).permute(tensors, order)
            found = _tensors(function(*(moved[name] for name in tensors)))
            wanted = made
            if outside[atom]:
                wanted = NeuronGroup("out", "unit", atom.size, (), tuple(outside[atom])).permute(made, order)
            for name, tensor in wanted.items():
                torch.testing.assert_close(found[name], tensor, msg=lambda text, n=atom.size: f"axis of {n}: {text}")
    return sorted(atom.size for atom in free)


def _tensors(result: Any) -> dict[str, Tensor]:
    parts = result if isinstance(result, tuple | list) else [result]
    return {f"out {k}": part for k, part in enumerate(parts) if isinstance(part, Tensor)}


def check_exchangeable(between: Callable[[Tensor], Tensor]) -> None:
    """The twelve units in front of it are one proved group, and are read behind it."""
    [group] = find_neuron_groups(Between(between), X)
    assert (group.name, group.n, group.block_shape, group.status) == ("first", 12, (), "verified")
    assert group.params == ("first.weight", "first.bias", "last.weight")
