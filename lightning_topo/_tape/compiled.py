"""Whether a module runs anything compiled; if so, no dispatch mode may be entered around it."""

import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn


def compiled_reason(module: nn.Module) -> str | None:
    """Name a compiled part among a module's submodules or the globals its methods use; None if there is none.

    Dynamo gives up for good on a frame that it meets under a user's dispatch mode, so that recording would change how
    the training runs. Looks for modules and functions of `torch.compile`, `nn.Module.compile`, and Dynamo at work.

    >>> import torch
    >>> compiled_reason(nn.Linear(2, 2))
    >>> compiled_reason(nn.Sequential(torch.compile(nn.Linear(2, 2))))
    'the compiled module 0'
    """
    if _dynamo_is_at_work():
        return "the step runs under torch.compile"
    for path, child in module.named_modules():
        where = path or type(child).__name__
        if _is_optimized_module(child):
            return f"the compiled module {where.replace('._orig_mod', '')}"
        if getattr(child, "_compiled_call_impl", None) is not None:
            return f"the compiled module {where}"
        for name, value in _attributes(child):
            if _is_compiled(value):
                return f"the compiled function {where}.{name}"
    for cls in {type(child) for child in module.modules()}:
        for name, value in _named_in(cls):
            if _is_compiled(value):
                return f"the compiled function {name}, which {cls.__name__} calls"
    return None


def _is_optimized_module(value: Any) -> bool:
    return isinstance(value, nn.Module) and "_orig_mod" in value._modules


def _is_compiled(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return "_orig_mod" in value.__dict__.get("_modules", {})
    function = getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType) or "_torchdynamo_orig_callable" not in function.__dict__:
        return False
    return not function.__dict__.get("_torchdynamo_disable", False)  # of `torch.compiler.disable`: never compiled


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of the instance and its classes, containers one level deep."""
    for name, value in module.__dict__.items():
        if name in ("_modules", "_parameters", "_buffers"):
            continue
        yield name, value
        if isinstance(value, dict):
            yield from ((name, part) for part in value.values())
        elif isinstance(value, (list, tuple)):
            yield from ((name, part) for part in value)
    for cls in type(module).__mro__:
        if cls is not nn.Module and cls is not object:
            yield from vars(cls).items()


def _named_in(cls: type) -> Iterator[tuple[str, Any]]:
    """The global values that the methods of a user's class name, one call deep."""
    seen: set[int] = set()
    ahead = [value for base in cls.__mro__ for value in vars(base).values() if isinstance(value, types.FunctionType)]
    for depth in range(3):
        following = []
        for function in ahead:
            if id(function) in seen or (function.__module__ or "").startswith(("torch", "lightning")):
                continue
            seen.add(id(function))
            for name in function.__code__.co_names:
                value = function.__globals__.get(name)
                if value is None and (owner := sys.modules.get(function.__module__)) is not None:
                    value = getattr(owner, name, None)
                yield name, value
                if isinstance(value, types.FunctionType) and depth < 2:
                    following.append(value)
        ahead = following


def _dynamo_is_at_work() -> bool:
    """Whether Dynamo's frame evaluation is switched on in this thread; its module is not imported to find out."""
    frames = sys.modules.get("torch._C._dynamo.eval_frame")
    if frames is None or "torch._dynamo" not in sys.modules:
        return False
    try:
        return callable(frames.get_eval_frame_callback())
    except AttributeError:
        return False
