"""The largest eigenvalue of the Hessian, raw and scaled by an optimizer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._finite_differences import finite_difference_hessian
from lightning_topo.stability._hessian import Curvature, NotTwiceDifferentiable, hessian, whole
from lightning_topo.stability._lanczos import Extremes, LanczosSettings, extreme_eigenvalues
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import is_one, range_of_ratios, spread

_COLD_PRODUCTS = 10
"""Minimum for a cold start. Stopped by the residual alone, 4 of 48 on a CNN converged to a lower eigenvalue."""


@dataclass(frozen=True, slots=True)
class SharpnessEstimate:
    """lambda_max(H) with its error bounds.

    `value` is a lower bound of lambda_max; some eigenvalue lies within `residual` of it. `smallest` is an upper bound
    of lambda_min from the same products. `vector` is the unit Ritz vector: the `start` of the next estimate nearby.
    `top` holds the `n_largest` largest Ritz values, `value` first. `obstacle` names the operator that forced finite
    differences; None if exact.
    """

    value: float
    residual: float
    converged: bool
    n_hvp: int
    smallest: float
    loss: float
    vector: Float[Tensor, " p"]
    top: tuple[float, ...]
    obstacle: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the Hessian's products were exact, and not finite differences of the gradient."""
        return self.obstacle is None


def sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    start: Float[Tensor, " p"] | None = None,
    tolerance: float = 0.02,
    max_products: int = 60,
    n_largest: int = 1,
    seed: int = 0,
) -> SharpnessEstimate:
    """The largest eigenvalue of the Hessian of `loss_fn()` with respect to `params`, by Lanczos' method.

    It touches no `.grad`, parameter or global random state. If an operator cannot be differentiated twice, products are
    finite differences, and `obstacle` names the operator.

    Args:
        loss_fn: Evaluates the loss.
        params: The parameters to differentiate by.
        start: The Ritz vector of an earlier estimate, for a warm start; if that does not converge, a cold start
            follows. A cold start begins with the gradient plus a random direction. A warm start can stay with an
            eigenvector whose eigenvalue is no longer the largest; a fifth of a cold start is mixed in, which
            prevents this in most cases. Make a cold start now and then.
        tolerance: The relative residual at which an eigenvalue has converged.
        max_products: The most Hessian products of one start.
        n_largest: How many of the largest eigenvalues to find.
        seed: Seeds the random direction.

    Raises `ValueError` if nothing requires a gradient and `FloatingPointError` if the loss is not finite.

    Source: Cohen et al., arXiv:2103.00065 (sharpness); Gur-Ari, Roberts and Dyer, arXiv:1812.04754 (the gradient lies
    mostly among the top eigenvectors); see `extreme_eigenvalues` and `hessian`.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> estimate = sharpness(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta])
    >>> round(estimate.value, 4), estimate.converged
    (6.0, True)
    """
    params = tuple(params)
    settings = LanczosSettings(tolerance=tolerance, max_products=max_products, n_largest=n_largest, seed=seed)
    try:
        return curvature_sharpness(hessian(loss_fn, params), start=start, settings=settings)
    except NotTwiceDifferentiable as error:
        obstacle = error.operator
    return curvature_sharpness(
        finite_difference_hessian(loss_fn, params, obstacle=obstacle), start=start, settings=settings
    )


@dataclass(frozen=True, slots=True)
class ScaledSharpness:
    """The curvature scaled by an optimizer's step.

    - `ratio` is lambda_max(S^1/2 H S^1/2), 1 at the edge of stability, and `residual` its error bound.
    - `eta_lambda` is the largest absolute Ritz value of M^1/2 H M^1/2. It is the paper's eta K as a point estimate, not
      a certificate: momentum and preconditioner count as constants. `ParameterThreshold` defines S and M.
    - `vector` is the Ritz vector of `ratio`; None if one number scales all parameters, so that the vector of the
      sharpness is also this one.
    - `n_hvp` counts Hessian products beyond those of the sharpness.
    """

    ratio: float
    eta_lambda: float
    residual: float
    converged: bool
    n_hvp: int = 0
    vector: Float[Tensor, " p"] | None = None


def curvature_sharpness(
    curvature: Curvature, *, start: Float[Tensor, " p"] | None = None, settings: LanczosSettings = LanczosSettings()
) -> SharpnessEstimate:
    """`sharpness` of a Hessian that is already built."""
    found = _warm_lanczos(lambda vector: curvature @ vector, curvature, start, settings)
    return SharpnessEstimate(
        found.largest,
        found.residual,
        found.converged,
        found.n_products,
        found.smallest,
        curvature.loss,
        found.vector,
        found.top,
        curvature.obstacle,
    )


def scaled_sharpness(
    curvature: Curvature,
    thresholds: Sequence[ParameterThreshold],
    raw: SharpnessEstimate,
    *,
    start: Float[Tensor, " p"] | None = None,
    settings: LanczosSettings = LanczosSettings(),
) -> ScaledSharpness:
    """The curvature scaled by an optimizer, given the optimizer's threshold for each parameter.

    If one number scales all parameters, the result follows from `raw` without a product. Otherwise Lanczos' method
    runs on the scaled operator, from `start` or from the scaled vector of `raw`.

    `thresholds` has one entry for each of `curvature.params`, in their order. `raw` is the result of
    `curvature_sharpness` for the same Hessian. `start` is the `vector` of an earlier result, for a warm start.
    """
    uniform = all(isinstance(s.stability, float) and isinstance(s.step, float) for s in thresholds)
    if uniform and len(set(thresholds)) == 1:
        only = thresholds[0]
        decay = float(only.weight_decay)
        top, bottom = raw.value + decay, raw.smallest + decay
        at_edge, in_step = float(only.stability), float(only.step)
        return ScaledSharpness(
            at_edge * top, in_step * max(abs(top), abs(bottom)), at_edge * raw.residual, raw.converged
        )
    settings = replace(settings, n_largest=1)
    if not any(_moves(each) for each in thresholds):
        return ScaledSharpness(0.0, 0.0, 0.0, converged=True)
    params = curvature.params
    least, most = range_of_ratios([each.step for each in thresholds], [each.stability for each in thresholds])
    stable = spread([each.stability for each in thresholds], params)
    # c w is one number for all parameters unless momentum differs between them: then one spectrum gives both.
    step = None if is_one(least, most) else spread([each.step for each in thresholds], params)
    decay = _decay(thresholds, params)
    del thresholds  # three vectors of their own, unless the caller goes on with them

    def extremes(root: Tensor, start: Tensor | None) -> Extremes:
        def operator(vector: Tensor) -> Tensor:
            scaled = root * vector
            image = curvature @ scaled
            if isinstance(decay, Tensor) or decay != 0.0:
                image += decay * scaled
            return image.mul_(root)

        return _warm_lanczos(operator, curvature, start, settings)

    root = stable.sqrt_()
    found = extremes(root, _scaled_start(root, raw.vector, start))
    if step is None:
        in_step, further = (least + most) / 2 * max(abs(found.largest), abs(found.smallest)), 0
    else:
        other = extremes(step.sqrt_(), found.vector)
        in_step, further = max(abs(other.largest), abs(other.smallest)), other.n_products
    return ScaledSharpness(
        found.largest, in_step, found.residual, found.converged, found.n_products + further, found.vector
    )


def _scaled_start(root: Tensor, vector: Tensor, known: Tensor | None) -> Tensor:
    if known is not None and known.shape == root.shape and known.any():
        return known
    scaled = root * vector.to(root)
    # The top direction may lie in parameters that do not move.
    return scaled if scaled.any() else root


def _moves(threshold: ParameterThreshold) -> bool:
    stable = threshold.stability
    return bool(whole(stable).any()) if isinstance(stable, Tensor) else stable != 0.0


def _decay(thresholds: Sequence[ParameterThreshold], params: Sequence[Tensor]) -> Tensor | float:
    """The weight decay of all entries: one number where it is."""
    decays = [each.weight_decay for each in thresholds]
    first = decays[0]
    if not isinstance(first, Tensor) and all(not isinstance(each, Tensor) and each == first for each in decays):
        return float(first)
    return spread(decays, params)


def _warm_lanczos(
    operator: Callable[[Tensor], Tensor],
    curvature: Curvature,
    start: Tensor | None,
    settings: LanczosSettings,
) -> Extremes:
    """Lanczos' method from `start`; from what is at hand where there is none, or where that has not converged.

    No cold start is held while the method runs: where parameters are many, each vector counts.
    """
    patient = replace(settings, min_products=max(settings.min_products, _COLD_PRODUCTS))
    n_parameters = sum(p.numel() for p in curvature.params)
    if start is None or start.shape != (n_parameters,):
        return extreme_eigenvalues(operator, _cold_start(curvature, settings.seed), patient)
    found = extreme_eigenvalues(operator, _mixed_start(curvature, start, settings.seed), settings)
    if found.converged:
        return found
    again = extreme_eigenvalues(operator, _cold_start(curvature, settings.seed), patient)
    return replace(again, n_products=found.n_products + again.n_products)


def _mixed_start(curvature: Curvature, start: Tensor, seed: int) -> Float[Tensor, " p"]:
    cold = _cold_start(curvature, seed)
    start = start.to(cold)
    return cold.mul_(_FRESH).add_(start, alpha=1.0 / float(start.norm()))


_FRESH = 0.2
"""A start that is an eigenvector to the last digit would never see that another one has overtaken it."""


def _cold_start(curvature: Curvature, seed: int) -> Float[Tensor, " p"]:
    """The gradient's direction and a random one: the former leans to the top eigenvectors, the latter misses none."""
    gradient = curvature.gradient
    generator = torch.Generator(gradient.device).manual_seed(seed)
    noise = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype, device=gradient.device)
    length = float(gradient.norm())
    noise /= noise.norm()
    return noise.add_(gradient, alpha=1.0 / length) if length > 0.0 else noise
