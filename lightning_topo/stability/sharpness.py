"""Sharpness, raw and as the optimizer feels it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability.hessian import Hessian, hessian
from lightning_topo.stability.lanczos import Extremes, extreme_eigenvalues
from lightning_topo.stability.scaling import ParameterScaling


@dataclass(frozen=True, slots=True)
class SharpnessEstimate:
    """lambda_max(H), and how sure it is.

    `value` is a lower bound of lambda_max; some eigenvalue lies within `residual` of it. `smallest` is an upper bound
    of lambda_min from the same products. `vector` is the unit Ritz vector: the `start` of the next estimate nearby.
    """

    value: float
    residual: float
    converged: bool
    n_hvp: int
    smallest: float
    loss: float
    vector: Float[Tensor, " p"]


def sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 0.02,
    max_products: int = 60,
    seed: int = 0,
) -> SharpnessEstimate:
    """The largest eigenvalue of the Hessian of `loss_fn()` with respect to `params`, by Lanczos' method.

    Starts from `start` (the Ritz vector of an earlier estimate) or a random vector drawn with `seed`; if a warm start
    has not converged to the relative residual `tolerance`, once more from a random one. No `.grad`, parameter or
    global random state is touched.

    Raises `ValueError` if nothing requires a gradient and `FloatingPointError` if the loss is not finite.

    Source: Cohen et al., arXiv:2103.00065 (sharpness); see `extreme_eigenvalues` and `hessian`.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> estimate = sharpness(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta])
    >>> round(estimate.value, 4), estimate.converged
    (6.0, True)
    """
    return _estimate(hessian(loss_fn, params), start, tolerance, max_products, seed)


@dataclass(frozen=True, slots=True)
class StabilityEstimate:
    """The sharpness beside what the optimizer makes of it; None where its threshold is not known.

    `ratio` is lambda_max(S^1/2 H S^1/2), the edge of stability at 1. `eta_lambda` is the larger of |theta_max| and
    |theta_min| over the Ritz values of M^1/2 H M^1/2: the paper's eta K as a point estimate, never a certificate.
    It treats momentum and preconditioner as constants in the step.
    """

    sharpness: SharpnessEstimate
    ratio: float | None
    eta_lambda: float | None


def stability(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    scale: Callable[[Sequence[Tensor]], Sequence[ParameterScaling] | None],
    *,
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 0.02,
    max_products: int = 60,
    seed: int = 0,
) -> StabilityEstimate:
    """Sharpness, sharpness ratio and eta_lambda from one gradient graph.

    `scale` gives the scalings of the trainable parameters, in their order (`parameter_scalings` of the optimizers).

    Source: Cohen et al., arXiv:2103.00065; Yang et al., arXiv:2510.02670 (eta K).

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> found = stability(lambda: (theta ** 2).sum(), [theta], lambda ps: [ParameterScaling(0.25, 0.5)] * len(ps))
    >>> round(found.ratio, 4), round(found.eta_lambda, 4)
    (0.5, 1.0)
    """
    curvature = hessian(loss_fn, params)
    estimate = _estimate(curvature, start, tolerance, max_products, seed)
    scalings = scale(curvature.params)
    if scalings is None:
        return StabilityEstimate(estimate, ratio=None, eta_lambda=None)
    if len(set(scalings)) == 1:
        # One learning rate for all: the spectrum only shifts and stretches.
        (only,) = set(scalings)
        top, bottom = estimate.value + only.weight_decay, estimate.smallest + only.weight_decay
        return StabilityEstimate(estimate, only.stability * top, only.step * max(abs(top), abs(bottom)))

    def extremes(sizes: Iterable[float]) -> Extremes:
        root = _spread(sizes, curvature).sqrt()
        decay = _spread((s.weight_decay for s in scalings), curvature)

        def operator(vector: Tensor) -> Tensor:
            scaled = root * vector
            return root * ((curvature @ scaled) + decay * scaled)

        start = root * estimate.vector
        start = start if start.any() else root  # the top direction may lie in parameters that do not move
        return extreme_eigenvalues(operator, start, tolerance=tolerance, max_products=max_products)

    at_edge = extremes(s.stability for s in scalings)
    in_step = extremes(s.step for s in scalings)
    return StabilityEstimate(estimate, at_edge.largest, max(abs(in_step.largest), abs(in_step.smallest)))


def _estimate(
    curvature: Hessian, start: Tensor | None, tolerance: float, max_products: int, seed: int
) -> SharpnessEstimate:
    like = torch.cat([p.detach().reshape(-1)[:0] for p in curvature.params])
    size = sum(p.numel() for p in curvature.params)
    dtype = torch.promote_types(like.dtype, torch.float32)
    generator = torch.Generator(like.device).manual_seed(seed)

    def lanczos(start: Tensor) -> Extremes:
        return extreme_eigenvalues(
            lambda vector: curvature @ vector, start, tolerance=tolerance, max_products=max_products
        )

    warm = start is not None and start.shape == (size,)
    n_wasted = 0
    cold = torch.randn(size, generator=generator, dtype=dtype, device=like.device)
    found = lanczos(start.to(cold) if warm and start is not None else cold)
    if warm and not found.converged:
        n_wasted, found = found.n_products, lanczos(cold)
    return SharpnessEstimate(
        found.largest,
        found.residual,
        found.converged,
        n_wasted + found.n_products,
        found.smallest,
        curvature.loss,
        found.vector,
    )


def _spread(values: Iterable[float], curvature: Hessian) -> Float[Tensor, " p"]:
    """One value per parameter tensor, as a flat vector with one per entry."""
    return torch.cat(
        [
            torch.full((p.numel(),), value, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
            for value, p in zip(values, curvature.params, strict=True)
        ]
    )
