"""Arithmetic that ambient settings cannot weaken: no autocast, no TF32 or bfloat16 inside matrix products."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, but float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def real_dtype(points: Tensor) -> torch.dtype:
    """The dtype of results about a cloud: its own, but at least float32."""
    return torch.promote_types(points.dtype, torch.float32)


def product_slack(dtype: torch.dtype, d: int) -> float:
    """Bound κ on the error of |x|² + |y|² - 2 x·y as a matrix product gives it, in units of |x|² + |y|².

    The rounding of d summed products grows like sqrt(d) (Higham and Mary, SIAM J. Sci. Comput. 41, 2019); the
    constant leaves room for the rounding of the centred points themselves.
    """
    return torch.finfo(dtype).eps * (8 + d**0.5)


def worst_case_slack(dtype: torch.dtype, d: int) -> float:
    """The same bound with certainty, for any order of summation: also of the square of a vector's norm.

    γ_d = d u / (1 - d u), u = eps / 2, for the products and the squares each (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1), and 16 eps for the rounding of the points and of the sums of three.
    """
    return torch.finfo(dtype).eps * (16 + 1.1 * d)


def worst_case_work(dtype: torch.dtype, device: torch.device, d: int) -> torch.dtype:
    """The narrowest dtype, at least float32 and that of the points, in which the worst case loses at most a tenth."""
    work = torch.promote_types(dtype, torch.float32)
    return work if worst_case_slack(work, d) < 0.1 else wide_dtype(device)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in full precision and without gradients; the caller's settings return afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            for library in (torch.backends.cuda, torch.backends.mkldnn):
                matmul: Any = getattr(library, "matmul")  # noqa: B009 - the stubs of mkldnn lack it
                stack.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
                matmul.fp32_precision = "ieee"
        else:  # torch < 2.9
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield
