"""Tensors that a module holds as plain attributes: no data of a step, but constants of the model.

Only if they were there before the training had any data: a module may keep its batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_topo._tape.foreign import is_foreign

_MOST = 1000
"""Longer lists are no constants, but what was gathered in training: losses, transitions."""
_OWN_TABLES = ("_parameters", "_buffers", "_modules")


def held_storages(source: nn.Module | Mapping[str, Tensor], data: Any = None) -> frozenset[int]:
    """The storages of tensors that are attributes of modules, alone or in a list, a tuple or a dictionary.

    Those of `data` in any nesting are left out.

    >>> model = nn.Linear(2, 1)
    >>> model.scales = [torch.ones(2)]
    >>> held_storages(model) == {model.scales[0].untyped_storage()._cdata}
    True
    """
    if not isinstance(source, nn.Module):
        return frozenset()
    own = (value for module in source.modules() for name, value in module.__dict__.items() if name not in _OWN_TABLES)
    return _storages(_tensors(own)) - _storages(leaf for leaf in tree_leaves(data) if isinstance(leaf, Tensor))


def _storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    strided = (tensor for tensor in tensors if not is_foreign(tensor) and tensor.layout is torch.strided)
    return frozenset(tensor.untyped_storage()._cdata for tensor in strided)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values, and among what lists of them hold."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        else:
            yield from (part for part in _parts(value) if isinstance(part, Tensor))


def _parts(value: Any) -> Iterable[Any]:
    """What a container holds, by the container's own methods: a user's class may have others."""
    if isinstance(value, dict):
        return dict.values(value) if dict.__len__(value) <= _MOST else ()
    if isinstance(value, list):
        return list.__iter__(value) if list.__len__(value) <= _MOST else ()
    if isinstance(value, tuple):
        return tuple.__iter__(value) if tuple.__len__(value) <= _MOST else ()
    return ()
