"""Calls on lists of tensors (`_foreach_add_`) as a call for each: what each does has rules, and can be pruned alone."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from lightning_topo._tape.program import Call, Slot

_PREFIX = "aten::_foreach_"


def single_calls(call: Call) -> Sequence[Call]:
    """The calls for each entry of the lists; the call itself where it works on no lists, or no such operator is known.

    >>> lists = ((Slot(0), Slot(1)), (Slot(2), Slot(3)))
    >>> call = Call(torch.ops.aten._foreach_add_.List, lists, {"alpha": 0.1}, (None,))
    >>> [(one.name, one.args, one.writes) for one in single_calls(call)][1]
    ('aten::add_', (Slot(index=1), Slot(index=3)), (1,))
    """
    if not call.name.startswith(_PREFIX):
        return (call,)
    declared = call.operator._schema.arguments  # pyright: ignore[reportFunctionMemberAccess]
    given = [(argument.name, value) for argument, value in zip(declared, call.args, strict=False)]
    lists = {argument.name for argument in declared if "List" in str(argument.type)}
    n = len(call.args[0])
    in_place = call.name.endswith("_")
    singles = []
    for i in range(n):
        own = [(name, value[i] if name in lists else value) for name, value in given]
        options = {name: value[i] if name in lists else value for name, value in call.kwargs.items()}
        found = _single(call.name.removeprefix(_PREFIX), own, options)
        if found is None:
            return (call,)
        operator, args, kwargs = found
        writes = (args[0].index,) if in_place else ()
        singles.append(Call(operator, args, kwargs, writes or (call.outputs[i],), writes, call.grad))
    return tuple(singles)


def _single(name: str, args: Sequence[tuple[str, Any]], kwargs: dict[str, Any]) -> Any:
    """The operator for one entry, with its arguments; what it takes by name only is passed so."""
    for operator, positional, by_name in _overloads(name):
        if "value" in by_name:  # `addcdiv`: the lists' own name for several of them is another
            args = [("value" if key == "scalars" and _is_number(value) else key, value) for key, value in args]
        options = kwargs | {key: value for key, value in args if key in by_name}
        left = [value for key, value in args if key not in by_name]
        fits = len(left) <= len(positional) and all(map(_fits, left, positional))
        if fits and options.keys() <= by_name and all(default for *_, default in positional[len(left) :]):
            return operator, tuple(left), options
    return None


@cache
def _overloads(name: str) -> tuple[Any, ...]:
    """The overloads of an operator: each with the types of its positional arguments, and the names of the others."""
    packet = getattr(torch.ops.aten, name, None)
    found = []
    for overload in packet.overloads() if packet is not None else ():
        operator = getattr(packet, overload)
        declared = operator._schema.arguments
        if any(argument.is_out for argument in declared):
            continue
        positional = tuple((str(a.type), a.has_default_value()) for a in declared if not a.kwarg_only)
        found.append((operator, positional, frozenset(a.name for a in declared if a.kwarg_only)))
    return tuple(found)


def _fits(value: Any, declared: tuple[str, bool]) -> bool:
    kind = declared[0]
    if isinstance(value, Slot):
        return kind in ("Tensor", "Optional[Tensor]")
    return kind in ("number", "float", "int", "bool", "Optional[number]") if _is_number(value) else False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
