"""Whether all processes train the same model, as data parallelism means them to: each measures some groups only."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_topo._tape.names import clean_name

Sample = Mapping[str, float]
"""One entry of some parameters, by name."""

_MOST_PARAMETERS = 64
_ALIKE, _SMALL = 1e-3, 1e-7
"""Kernels of different machines differ by less, relative to an entry or, where that is near 0, at all."""


@torch.no_grad()
def sample_of(module: nn.Module) -> Sample:
    """The middle of each trained parameter, of at most 64 spread evenly over the module; waits for the device once.

    >>> sample_of(nn.Linear(1, 1, bias=False).requires_grad_(False)), list(sample_of(nn.Linear(2, 3)))
    ({}, ['weight', 'bias'])
    """
    trained = [(clean_name(name), p) for name, p in module.named_parameters() if p.requires_grad and _is_plain(p)]
    chosen = trained[:: max(1, -(-len(trained) // _MOST_PARAMETERS))]
    entries = [p.detach()[tuple(size // 2 for size in p.shape)].abs().double() for _, p in chosen]
    values = torch.stack([entry.to(entries[0].device) for entry in entries]).tolist() if entries else []
    return {name: value for (name, _), value in zip(chosen, values, strict=True)}


def unlike(samples: Sequence[Sample]) -> tuple[int, Sequence[str]] | None:
    """The first process whose sample differs from that of process 0, and the parameters in which it does.

    An empty sample tells nothing.

    >>> unlike([{"weight": 1.0}, {"weight": 1.0}]), unlike([{"weight": 1.0, "bias": 0.5}, {"weight": 2.0, "bias": 0.5}])
    (None, (1, ['weight']))
    """
    for rank, theirs in enumerate(samples if samples and samples[0] else ()):
        if not theirs:
            continue
        names = [name for name in {**samples[0], **theirs} if not _are_alike(samples[0].get(name), theirs.get(name))]
        if names:
            return rank, names
    return None


def _are_alike(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=_ALIKE, abs_tol=_SMALL) or (math.isnan(a) and math.isnan(b))


def _is_plain(parameter: Tensor) -> bool:
    return parameter.numel() > 0 and parameter.layout is torch.strided and not parameter.is_meta
