"""The largest eigenvalue of the Hessian, raw and scaled by an optimizer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._finite_differences import finite_difference_hessian
from lightning_topo.stability._hessian import Curvature, NotTwiceDifferentiable, hessian
from lightning_topo.stability._lanczos import Extremes, LanczosSettings, extreme_eigenvalues
from lightning_topo.stability._layout import Layout, local
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import is_one, range_of_ratios

_COLD_PRODUCTS = 10
"""Minimum for a cold start. Stopped by the residual alone, 4 of 48 on a CNN converged to a lower eigenvalue."""


@dataclass(frozen=True, slots=True)
class SharpnessEstimate:
    """The largest eigenvalue lambda_max of a Hessian, estimated by Lanczos' method, with its error bounds.

    A Ritz value is the method's estimate of an eigenvalue.

    Attributes:
        value: Lower bound of lambda_max: the largest Ritz value.
        residual: Some eigenvalue lies within this distance of `value`; not necessarily lambda_max.
        converged: Whether the residuals met the tolerance.
        n_hvp: Number of Hessian-vector products.
        smallest: Upper bound of the smallest eigenvalue, from the same products.
        loss: The loss at the parameters where the Hessian was taken.
        vector: The unit Ritz vector of `value`, flat: the `start` of a later estimate.
        top: The `n_largest` largest Ritz values, in descending order.
        obstacle: The operator that forced finite differences; None if the products were exact.
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
    """Estimate the largest eigenvalue of the Hessian of a loss with respect to `params`, by Lanczos' method.

    It touches no `.grad`. Of torch's global generators, `loss_fn` alone draws random numbers. If an
    operator cannot be differentiated twice, products are finite differences, which move the parameters and restore
    them; the result's `obstacle` names the operator.

    Args:
        loss_fn: Returns the loss.
        params: The parameters to differentiate by; those without `requires_grad` are left out.
        start: The `vector` of an earlier estimate, for a warm start; if it does not converge, a cold start follows. A
            cold start begins with the gradient plus a random direction. A warm start can stay with an eigenvector whose
            eigenvalue is no longer the largest. A fifth of a cold start is mixed in, which prevents this in most cases.
            Make a cold start every few estimates.
        tolerance: The residual at which an eigenvalue has converged, relative to the largest; between 0 and 1.
        max_products: The most Hessian-vector products of one start.
        n_largest: How many of the largest eigenvalues to find.
        seed: Seeds the random direction.

    Raises:
        ValueError: No parameter requires a gradient, the loss is no scalar or has no gradient, or a setting is out of
            range.
        FloatingPointError: The loss or a product is not finite.

    Source: Cohen et al., arXiv:2103.00065 (sharpness); Gur-Ari, Roberts and Dyer, arXiv:1812.04754 (the gradient lies
    mostly among the top eigenvectors); see `extreme_eigenvalues` and `hessian`.

    >>> import torch
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
    """The sharpness of a Hessian H scaled by an optimizer's step: the result of `scaled_sharpness`.

    S, M and wd are the diagonal matrices of the fields `stability`, `step` and `weight_decay` of `ParameterThreshold`.

    Attributes:
        ratio: lambda_max(S^1/2 (H + wd) S^1/2): 1 at the edge of stability.
        eta_lambda: The largest absolute eigenvalue of M^1/2 (H + wd) M^1/2, as estimated. It estimates at one point eta
            K of arXiv:2510.02670, K being the Lipschitz constant of the update. It certifies nothing: momentum and
            preconditioner count as constants.
        residual: Some eigenvalue lies within this distance of `ratio`.
        converged: Whether `ratio` has converged.
        n_hvp: Number of Hessian-vector products beyond those of the unscaled sharpness.
        vector: The unit Ritz vector of `ratio`, flat. None if one number scales all parameters: it is that of the
            unscaled sharpness then; and if no parameter moves.
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
    """Estimate the largest eigenvalue of a Hessian that is already built, by Lanczos' method.

    Args:
        curvature: The Hessian, such as `hessian(...)`.
        start: The `vector` of an earlier estimate, from which Lanczos' method starts; if it does not converge, or if
            this is None, it starts from the gradient plus a random direction.
        settings: When to stop.

    Raises:
        FloatingPointError: A product is not finite.
        NotTwiceDifferentiable: An operator in the loss has no second derivative.
    """
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
    """Estimate the largest eigenvalue of a Hessian scaled by an optimizer's step: its ratio to the edge of stability.

    If one number scales all parameters, the result follows from `raw` without a product. Otherwise Lanczos' method runs
    on the scaled operator.

    - `thresholds` holds the optimizer's threshold for each of `curvature.params`, in their order.
    - `raw` is the result of `curvature_sharpness` for the Hessian `curvature`.
    - `start` is the `vector` of an earlier result, for a warm start; None starts from the scaled vector of `raw`.
    - `settings` says when to stop; its `n_largest` is ignored, as one eigenvalue is found.

    Raises:
        FloatingPointError: A product is not finite.
    """
    settings, layout = replace(settings, n_largest=1), curvature.layout
    plain = all(isinstance(s.stability, float) and isinstance(s.step, float) for s in thresholds)
    if not layout.anywhere(not plain or len(set(thresholds)) != 1):
        only = thresholds[0]
        decay = float(only.weight_decay)
        top, bottom = raw.value + decay, raw.smallest + decay
        at_edge, in_step = float(only.stability), float(only.step)
        return ScaledSharpness(
            at_edge * top, in_step * max(abs(top), abs(bottom)), at_edge * raw.residual, raw.converged
        )
    if not layout.anywhere(any(_moves(each) for each in thresholds)):
        return ScaledSharpness(0.0, 0.0, 0.0, converged=True)
    steps, stabilities = [each.step for each in thresholds], [each.stability for each in thresholds]
    least, most = range_of_ratios(steps, stabilities, layout)
    stable = layout.spread(stabilities)
    # c w is one number for all parameters unless momentum differs between them: then one spectrum gives both.
    step = None if is_one(least, most) else layout.spread(steps)
    decay = _decay(thresholds, layout)
    del thresholds, steps, stabilities  # three vectors of their own, unless the caller goes on with them

    def extremes(root: Tensor, start: Tensor | None) -> Extremes:
        def operator(vector: Tensor) -> Tensor:
            scaled = root * vector
            image = curvature @ scaled
            if isinstance(decay, Tensor) or decay != 0.0:
                image += decay * scaled
            return image.mul_(root)

        return _warm_lanczos(operator, curvature, start, settings)

    root = stable.sqrt_()
    found = extremes(root, _scaled_start(root, raw.vector, start, layout))
    if step is None:
        in_step, further = (least + most) / 2 * max(abs(found.largest), abs(found.smallest)), 0
    else:
        other = extremes(step.sqrt_(), found.vector)
        in_step, further = max(abs(other.largest), abs(other.smallest)), other.n_products
    return ScaledSharpness(
        found.largest, in_step, found.residual, found.converged, found.n_products + further, found.vector
    )


def _scaled_start(root: Tensor, vector: Tensor, known: Tensor | None, layout: Layout) -> Tensor:
    if known is not None and layout.anywhere(known.shape == root.shape and bool(known.any())):
        return known
    scaled = root * vector.to(root)
    # The top direction may lie in parameters that do not move.
    return scaled if layout.anywhere(bool(scaled.any())) else root


def _moves(threshold: ParameterThreshold) -> bool:
    stable = threshold.stability
    return bool(local(stable).any()) if isinstance(stable, Tensor) else stable != 0.0


def _decay(thresholds: Sequence[ParameterThreshold], layout: Layout) -> Tensor | float:
    """The weight decay of all entries: one number where it is."""
    decays = [each.weight_decay for each in thresholds]
    first = decays[0]
    if not isinstance(first, Tensor) and all(not isinstance(each, Tensor) and each == first for each in decays):
        return float(first)
    return layout.spread(decays)


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
    layout = curvature.layout
    if start is None or layout.anywhere(start.shape != (layout.n_local,)):
        return extreme_eigenvalues(operator, _cold_start(curvature, settings.seed), patient, layout=layout)
    found = extreme_eigenvalues(operator, _mixed_start(curvature, start, settings.seed), settings, layout=layout)
    if found.converged:
        return found
    again = extreme_eigenvalues(operator, _cold_start(curvature, settings.seed), patient, layout=layout)
    return replace(again, n_products=found.n_products + again.n_products)


def _mixed_start(curvature: Curvature, start: Tensor, seed: int) -> Float[Tensor, " p"]:
    cold = _cold_start(curvature, seed)
    start = start.to(cold)
    return cold.mul_(_FRESH).add_(start, alpha=1.0 / curvature.layout.norm(start))


_FRESH = 0.2
"""A start that is an eigenvector to the last digit would never see that another one has overtaken it."""


def _cold_start(curvature: Curvature, seed: int) -> Float[Tensor, " p"]:
    """The gradient's direction and a random one: the former leans to the top eigenvectors, the latter misses none."""
    gradient, layout = curvature.gradient, curvature.layout
    noise = layout.noise(gradient, seed)
    length = layout.norm(gradient)
    noise /= layout.norm(noise)
    return noise.add_(gradient, alpha=1.0 / length) if length > 0.0 else noise
