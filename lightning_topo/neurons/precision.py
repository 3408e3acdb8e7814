"""Run a model in float64 whatever its code says, with noise that is the same for every neuron."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

LOW = (torch.float32, torch.float16, torch.bfloat16)
NOISE = frozenset(
    {"randn", "randn_like", "rand", "rand_like", "normal_", "normal", "uniform_", "exponential_", "bernoulli"}
)


class Float64Mode(TorchDispatchMode):
    """Lets every operator see floating tensors as float64, also those that the code makes or casts.

    Noise is replaced by a constant: neurons that draw independent noise of one law are exchangeable in
    law, and equal in every draw only if the draw is equal. Integer randomness is left to the generator.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        in_place = func._schema.is_mutable
        if not (in_place and args and isinstance(args[0], Tensor) and args[0].dtype in LOW):
            args, kwargs = tree_map(_raised, args), tree_map(_raised, kwargs)
        result = func(*args, **(kwargs or {}))
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
