"""Run a model in float64 whatever its code says, with noise that is the same for every neuron."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LOW = (torch.float32, torch.float16, torch.bfloat16)
NOISE = frozenset(
    {"randn", "randn_like", "rand", "rand_like", "normal_", "normal", "uniform_", "exponential_", "bernoulli"}
)


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """Inside the block every computation of torch is done in float64, whatever dtype its code asks for.

    Noise is replaced by a constant: neurons that draw independent noise of one law are exchangeable in
    law, and equal in every draw only if the draw is equal. Integer randomness is left to the generator.
    """
    with _MixedArguments(), _Float64Operators():
        yield


class _MixedArguments(TorchFunctionMode):
    """Casts arguments before functions compare their dtypes, as convolutions do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtypes = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if torch.float64 in dtypes and not dtypes.isdisjoint(LOW) and not func.__name__.endswith("_"):
            args, kwargs = tree_map(_raised, args), tree_map(_raised, kwargs)
        return func(*args, **kwargs)


class _Float64Operators(TorchDispatchMode):
    """Lets every operator see floating tensors as float64, also those that the code makes or casts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        in_place = func._schema.is_mutable
        if not (in_place and args and isinstance(args[0], Tensor) and args[0].dtype in LOW):
            args, kwargs = tree_map(_raised, args), tree_map(_raised, kwargs)
        operator = _WITHOUT_FLOAT64.get(name) or func
        result = operator(*args, **(kwargs or {}))
        if name in NOISE:
            return tree_map(_quiet, result)
        return result if in_place else tree_map(_raised, result)


def _raised(x: Any) -> Any:
    if isinstance(x, Tensor) and x.dtype in LOW:
        return x.to(torch.float64)
    return torch.float64 if isinstance(x, torch.dtype) and x in LOW else x


def _quiet(x: Any) -> Any:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    return x.fill_(0.5) if x.dtype == torch.float64 else torch.full_like(x, 0.5, dtype=torch.float64)


def _grouped_mm(
    left: Tensor, right: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None
) -> Tensor:
    """One product per group of rows (or, for gradients, of the summed axis), as the kernel defines it."""
    if offs is None:
        return left @ right
    ends = offs.tolist()
    spans = list(zip([0, *ends], ends, strict=False))
    if left.dim() == right.dim() == 2:
        return torch.stack([left[:, start:stop] @ right[start:stop] for start, stop in spans])
    if left.dim() == 2:
        products = [left[start:stop] @ matrix for (start, stop), matrix in zip(spans, right, strict=True)]
        return torch.cat([*products, left.new_zeros(len(left) - ends[-1], right.shape[-1])])
    products = [matrix @ right[:, start:stop] for (start, stop), matrix in zip(spans, left, strict=True)]
    return torch.cat([*products, left.new_zeros(left.shape[1], right.shape[1] - ends[-1])], dim=1)


_WITHOUT_FLOAT64: dict[str, Callable[..., Any]] = {"_grouped_mm": _grouped_mm}
