"""Values that a step reads from tensors into Python, and whether its loss depends on them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_topo._tape.program import Call, HostRead, leaves
from lightning_topo._tape.pruning import pruned

READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
SHAPED_BY_VALUES = (
    "aten::nonzero",
    "aten::nonzero_static",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
)
"""Operators whose outputs have shapes that depend on values."""

_COMMON = frozenset({0.0, 1.0, 2.0})
"""Numbers that a program has of its own anyway."""


def leaned_on(
    reads: Sequence[HostRead],
    calls: Sequence[Call],
    kept: Sequence[Call],
    names: Mapping[int, tuple[str, ...]],
    storages: Sequence[int],
) -> tuple[HostRead, ...]:
    """The host reads that the kept calls show: shapes that depended on values, numbers that came back as arguments.

    A condition leaves no trace in the calls and is not seen.
    """
    operators = {call.name for call in kept}
    numbers = {abs(float(x)) for call in kept for x in leaves((call.args, call.kwargs)) if _is_number(x)}
    found = []
    for read in reads:
        shaped = read.operator in SHAPED_BY_VALUES and read.operator in operators
        if shaped or (read.value is not None and abs(read.value) in numbers - _COMMON):
            origin = pruned(calls[: read.n_calls], [read.slot], storages)
            slots = {read.slot, *(slot for call in origin for slot in call.inputs)}
            found.append(replace(read, params=frozenset(names[slot][0] for slot in slots if slot in names)))
    return tuple(read for read in found if read.params)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
