"""Tensors that a module holds as plain attributes: no data of a step, but constants of the model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo._tape.foreign import is_foreign

_OWN_TABLES = ("_parameters", "_buffers", "_modules")


def held_storages(source: nn.Module | Mapping[str, Tensor]) -> frozenset[int]:
    """The storages of tensors that are attributes of modules, alone or in a list, a tuple or a dictionary.

    >>> model = nn.Linear(2, 1)
    >>> model.scales = [torch.ones(2)]
    >>> held_storages(model) == {model.scales[0].untyped_storage()._cdata}
    True
    """
    if not isinstance(source, nn.Module):
        return frozenset()
    own = (value for module in source.modules() for name, value in module.__dict__.items() if name not in _OWN_TABLES)
    held = _tensors(own)
    return frozenset(
        tensor.untyped_storage()._cdata for tensor in held if not is_foreign(tensor) and tensor.layout is torch.strided
    )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values, and among what lists of them hold."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (part for part in value if isinstance(part, Tensor))
        elif isinstance(value, dict):
            yield from (part for part in value.values() if isinstance(part, Tensor))
