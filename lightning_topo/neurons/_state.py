"""Optimizer state of neurons: the moments kept for their weights."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._one_run import named_state

State = Literal["params", "params+moments"]


def named_moments(
    model: nn.Module, optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer]
) -> dict[str, dict[str, Tensor]]:
    """Return the optimizers' state tensors that have their parameter's shape, by state name and then parameter name.

    Adam keeps `exp_avg` and `exp_avg_sq`, SGD with momentum `momentum_buffer`. Before the first step there are none.

    >>> model = nn.Linear(2, 3)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.ones(2)).sum().backward()
    >>> optimizer.step()
    >>> {name: sorted(tensors) for name, tensors in named_moments(model, optimizer).items()}
    {'exp_avg': ['bias', 'weight'], 'exp_avg_sq': ['bias', 'weight']}
    """
    many = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers
    names = {id(p): name for name, p in named_state(model)[0].items()}
    moments: dict[str, dict[str, Tensor]] = {}
    for optimizer in many:
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and id(parameter) in names:
                    moments.setdefault(key, {})[names[id(parameter)]] = value
    return moments


def gather_state(
    group: NeuronGroup,
    model: nn.Module,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
    *,
    state: State = "params",
    out: Shaped[Tensor, "rows d"] | None = None,
) -> Shaped[Tensor, "rows d"]:
    """Return a group's neurons as rows: their weights and, with `state="params+moments"`, their optimizer moments.

    Rows are in the order of `NeuronGroup.gather`: block after block. Columns are the weights, then one moment after the
    other in the optimizer's order. Parameters without optimizer state (frozen, or before the first step) add no columns
    for moments. If `out` of the result's shape is given, it is filled and returned.

    Raises:
        ValueError: No parameter of the model belongs to the group, or `out` has another shape.

    >>> from lightning_topo.neurons import find_neuron_groups
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> gather_state(find_neuron_groups(model, torch.ones(1, 3))[0], model).shape
    torch.Size([8, 6])
    """
    sources: list[Mapping[str, Tensor]] = [named_state(model)[0]]
    if state == "params+moments":
        moments = named_moments(model, optimizers).values()
        sources += [tensors for tensors in moments if any(name in tensors for name in group.parameter_names)]
    if len(sources) == 1:
        return group.gather(sources[0], out=out)
    widths = [group.dim(source) for source in sources]
    if out is None:
        first = next(sources[0][name] for name in group.parameter_names if name in sources[0])
        out = torch.empty(group.n_blocks * group.n, sum(widths), dtype=first.dtype, device=first.device)
    if out.shape != (group.n_blocks * group.n, sum(widths)):
        raise ValueError(f"expected out of shape {(group.n_blocks * group.n, sum(widths))}, got {tuple(out.shape)}")
    for source, column in zip(sources, out.split(widths, dim=1), strict=True):
        group.gather(source, out=column)
    return out
