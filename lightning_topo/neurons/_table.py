"""The groups of a model as text."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_topo.neurons._group import NeuronGroup

HEADER = ("name", "kind", "n", "d", "parameters", "verified")


def neuron_table(groups: Sequence[NeuronGroup], parameters: Mapping[str, Tensor]) -> str:
    """Return a text table with one line per group: name, kind, sizes n and d, parameters, and whether it is verified.

    n is the number of neurons, shown as `blocks x n` if they are exchangeable only within blocks. d is the number of
    coordinates of a neuron. A group that is not verified shows its status and the reason. `parameters` is
    `dict(model.named_parameters())`.

    >>> import torch
    >>> from lightning_topo.neurons import find_neuron_groups
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> groups = find_neuron_groups(model, torch.randn(4, 3))
    >>> print(neuron_table(groups, dict(model.named_parameters())))
    name  kind  n  d  parameters                  verified
    0     unit  8  6  0.weight, 0.bias, 2.weight  yes
    """
    if not groups:
        return "no groups of hidden neurons were found"
    return "\n".join(aligned([HEADER, *(_row(group, parameters) for group in groups)]))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines whose columns line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size_text(group: NeuronGroup) -> str:
    """The number of neurons, after the number of blocks if there are several: `12 x 64`."""
    return " x ".join(map(str, [*group.block_shape, group.n]))


def _row(group: NeuronGroup, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = [name for name in group.parameter_names if name in parameters]
    listed = ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]}, {len(names) - 2} more"
    verdict = "yes" if group.status == "verified" else f"{group.status}: {group.reason}".removesuffix(": ")
    return (group.name, group.kind, size_text(group), str(group.dim(parameters)), listed, verdict)
