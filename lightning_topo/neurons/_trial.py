"""One permutation tried: how, how exactly, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_topo._memory import in_parts, largest_entry


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Thresholds of verification: of a residual against the control, of a control against the output.

    `ratio` is the largest residual of a proved group, relative to the change that permuting a single
    slice makes (the negative control). Where that control is itself below `floor` times the largest output,
    the group has too little influence to be judged.
    """

    ratio: float
    floor: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way to verify: in float64 or as recorded, how far off the parameters, with gradients or not.

    `choices` are recomputed (as which expert a token goes to), or constants where shapes depend on them.
    """

    float64: bool = True
    spread: float = 1.0
    gradients: bool = True
    choices: bool = True


FLOAT64 = Tolerance(ratio=1e-6, floor=1e-8)
NATIVE = Tolerance(ratio=2e-3, floor=1e-3)


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one permutation: relative change of the output, and largest relative error of the gradient.

    `errors` are those of the gradient by parameter, as they are.
    """

    residual: float
    gradient_error: float
    failure: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A gradient over its largest entry: rounding it to float32 is then far below any tolerance, whatever its size."""

    values: Tensor
    scale: float

    @staticmethod
    def of(gradient: Tensor) -> "Scaled":
        """The gradient in half the memory.

        It is left as it is: autograd may go on with the same memory, as where a sum has a single term.
        """
        largest = largest_entry(gradient)
        narrow = torch.empty_like(gradient, dtype=torch.complex64 if gradient.is_complex() else torch.float32)
        for part, known in in_parts(narrow, gradient):
            part.copy_(known / (largest or 1.0))
        return Scaled(narrow, largest)
