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
from lightning_topo.stability._parameter_thresholds import spread

_COLD_PRODUCTS = 10
"""Of a cold start, at the least: stopped by the residual alone, 4 of 48 on a CNN settled on a lower eigenvalue."""


@dataclass(frozen=True, slots=True)
class SharpnessEstimate:
    """lambda_max(H) with its error bounds.

    `value` is a lower bound of lambda_max; some eigenvalue lies within `residual` of it. `smallest` is an upper bound
    of lambda_min from the same products. `vector` is the unit Ritz vector: the `start` of the next estimate nearby.
    `top` holds the largest eigenvalues that were asked for, `value` first. `obstacle` is the operator for whose
    sake the products were finite differences; None where they were exact.
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

    Starts from `start` (the Ritz vector of an earlier estimate) or, without one, from the gradient's direction and a
    random one drawn with `seed`; if a warm start has not converged to the relative residual `tolerance`, once more
    without it. `n_largest` asks for more than one of the largest eigenvalues. No `.grad`, parameter or global random
    state is touched.

    A start near an eigenvector may converge to that one though another has overtaken it. A fifth of what a cold start
    consists of is mixed in, which shows the other in most cases; begin without a start now and then.

    Where an operator cannot be differentiated twice the products are finite differences, and `obstacle` names it.

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

    `ratio` is lambda_max(S^1/2 H S^1/2), the edge of stability at 1, with its `residual`. `eta_lambda` is the larger
    of |theta_max| and |theta_min| over the Ritz values of M^1/2 H M^1/2: the paper's eta K as a point estimate, never
    a certificate. It treats momentum and preconditioner as constants in the step. `vector` is the Ritz vector of
    `ratio`; None where the threshold is a number and those of the sharpness serve. `n_hvp` counts further products.
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
    """The same as `sharpness`, for a Hessian that is already built."""
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
    """The curvature scaled by an optimizer, from its threshold of each of `curvature.params`.

    Where one number scales every parameter the spectrum only shifts and stretches, and `raw` is all that is needed.
    Otherwise Lanczos' method on the scaled operator, from `start` (the `vector` of an earlier result) or from the
    scaled vector of `raw`.
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
    params, least, most = curvature.params, *_step_weights(thresholds)
    stable = spread([each.stability for each in thresholds], params)
    # c w is one number for all parameters unless momentum differs between them: then one spectrum tells both.
    step = None if most - least <= 1e-4 * most else spread([each.step for each in thresholds], params)
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


def _step_weights(thresholds: Sequence[ParameterThreshold]) -> tuple[float, float]:
    """The least and the largest M / S of all entries that move."""
    least, largest = float("inf"), 0.0
    for each in thresholds:
        stable, step = (torch.as_tensor(whole(v) if isinstance(v, Tensor) else v) for v in (each.stability, each.step))
        ratios = (step / stable)[stable > 0]
        if len(ratios):
            least, largest = min(least, float(ratios.min())), max(largest, float(ratios.max()))
    return least, largest


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
