"""The edge of stability of every optimizer as one number, from how the optimizer scales the curvature.

A step is linear in the newest gradient g, entry by entry: Delta = -lr / D * (w g + history), with D the preconditioner
and w the weight of the newest gradient. On a quadratic loss with Hessian H and a constant D the iteration is stable
while lambda_max(S^1/2 H S^1/2) < 1 with S = diag(lr / (c D)); c is the edge coefficient, at which the characteristic
polynomial of the iteration has the root -1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._layout import Layout, local
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold, Scale, coupled_gradient, steps
from lightning_topo.stability._recognition import maximizes, readable, recognised


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The optimizers' threshold for each parameter, or the reason why there is none.

    Attributes:
        parameters: One threshold per parameter, in the order of the parameters; None if `reason` is given.
        rules: The name of the update rule of each optimizer, such as "Adam"; "" if it has none.
        reason: Why there is no threshold; None if there is one.
    """

    parameters: tuple[ParameterThreshold, ...] | None
    rules: tuple[str, ...]
    reason: str | None = None


def parameter_thresholds(
    optimizers: Iterable[torch.optim.Optimizer],
    params: Iterable[Tensor],
    gradient: Float[Tensor, " p"] | None = None,
    *,
    gradient_scales: Sequence[float | None] | None = None,
    layout: Layout | None = None,
) -> Thresholds:
    """Compute the threshold of each parameter for the next step, or give the reason why it is not known.

    The step is Delta = -lr / D * (w g + history), entry by entry, with g the newest gradient. A `ParameterThreshold`
    holds S = lr / (c D) and M = lr w / D, where

    | optimizer | c | w | D |
    |---|---|---|---|
    | SGD, momentum mu, dampening d | 2 (1+mu) / (1-d) | 1-d (1 on a buffer's first step) | 1 |
    | SGD, Nesterov | 2 (1+mu) / (1+2mu) | 1+mu | 1 |
    | ASGD | 2 - lr lambd | 1 | 1, with its decayed rate for lr |
    | Adam, AMSGrad | 2 (1+b1) / (1-b1) | 1-b1 | (1-b1^t) (sqrt(v_hat) + eps) |
    | RAdam | 2 (1+b1) / (1-b1) | 1-b1 | (1-b1^t) (sqrt(v) + eps) / (rect_t sqrt(1-b2^t)); 1-b1^t at first |
    | Adamax | 2 (1+b1) / (1-b1) | 1-b1 | (1-b1^t) u |
    | NAdam | 2 / (A + B (1-b1) / (1+b1)) | A + B (1-b1) | sqrt(v_hat) + eps |
    | RMSprop, momentum mu | 2 (1+mu) | 1 | sqrt(v) + eps; centered: v less the squared mean gradient |
    | Adagrad | 2 | 1 | sqrt(sum) + eps, with lr / (1 + t lr_decay) for lr |
    | Adadelta | 2 | 1 | sqrt(v + eps) / sqrt(q + eps) |
    | Adafactor | 2 | 1 | sqrt(v), with its relative rate, divided by its clipping, for lr |
    | schedule-free | (4-2a) / ((1-b)(2-a) + b a) | 1-b + b a | sqrt(v_hat) + eps; SGD: 1 |

    b1 and b2 are the betas, t is the number of steps, v the second moment of the gradients and v_hat = v / (1-b2^t);
    u is Adamax's infinity norm, q Adadelta's second moment of the steps, rect_t RAdam's rectification. NAdam: A =
    (1-mu_t) / (1-P_t) and B = mu_(t+1) / (1 - P_t mu_(t+1)), with P_t its `mu_product`. Schedule-free: b is the
    momentum or first beta, and a the weight of the newest iterate in its mean. If the weight decay wd is decoupled
    (AdamW), 2 in c becomes 2 - lr wd. lr is the current learning rate. SAM and the wrappers of Lightning, Accelerate
    and DeepSpeed have the threshold of the optimizer inside. Where all optimizers maximize, H and the gradient are
    those of the loss times -1.

    The result holds a reason in place of thresholds if an optimizer has no rule (`recognised`), if an adaptive one has
    not stepped yet (`awaits_first_step`), or if all optimizers together, at least one, hold none of `params`. A
    parameter that no optimizer holds, or that an adaptive one has never moved, has threshold 0.

    Args:
        optimizers: The optimizers, wrapped or not.
        params: The parameters.
        gradient: The flat gradient of `params` at their present values. With it, the second moments are those of the
            next step, as an adaptive optimizer updates them before it divides by them. Without it, they are those after
            the last step. It matters for entries with almost no gradient so far, whose D would otherwise
            be about eps.
        gradient_scales: For each optimizer the factor s, if it is given s g in place of the gradient g of this loss:
            |g| after clipping divided by |g| before; and, if the training sums its loss over more samples, times that
            loss divided by this one. S and M are multiplied by s, moments take in s g, coupled weight decay is
            unchanged. None: s = 1. A scale that is None says that no one factor scales all entries, as where they are
            clipped by value: there is no threshold then.
        layout: How `gradient` lies on the processes, as of `Curvature.layout`; None if the parameters show it.

    Raises:
        ValueError: `gradient_scales` does not hold one finite, non-negative number per optimizer.

    Source: Cohen et al., arXiv:2103.00065, appendix B (momentum and Nesterov); arXiv:2207.14484 (adaptive methods).

    >>> theta = torch.zeros(3, requires_grad=True)
    >>> sgd = torch.optim.SGD([theta], lr=0.5)
    >>> parameter_thresholds([sgd], [theta]).parameters
    (ParameterThreshold(stability=0.25, step=0.5, weight_decay=0.0, total=0.5),)
    >>> parameter_thresholds([sgd], [theta], gradient_scales=[0.1]).parameters[0].step
    0.05
    >>> parameter_thresholds([torch.optim.LBFGS([theta])], [theta]).reason
    'LBFGS: its step comes from a model of the curvature, not from a learning rate'
    """
    optimizers = tuple(optimizers)
    found = [recognised(optimizer) for optimizer in optimizers]
    names = tuple("" if one.rule is None else one.rule.name for one in found)
    scales = _checked_scales(gradient_scales, len(found))
    params = tuple(params)
    layout = Layout.of(params) if layout is None else layout
    ahead = {} if gradient is None else {id(p): g for p, g in zip(params, layout.shaped(gradient), strict=True)}
    wanted = {id(p) for p in params}
    thresholds: dict[int, ParameterThreshold] = {}
    for one, scale in zip(found, scales, strict=True):
        if one.rule is None:
            return Thresholds(None, names, one.reason)
        if scale is None:
            reason = "its gradient is scaled by no one factor that is known, as where it is clipped by value"
            return Thresholds(None, names, f"{type(one.optimizer).__name__}: {reason}")
        if one.rule.adaptive and not _has_stepped(one.optimizer):
            return Thresholds(None, names, f"{type(one.optimizer).__name__}: it has not stepped yet")
        for options in one.optimizer.param_groups:
            for param in options["params"]:
                if id(param) not in wanted:
                    continue
                group, state = readable(one.optimizer, options, one.optimizer.state.get(param, {}))
                if one.rule.ahead is not None and not steps(state):
                    thresholds[id(param)] = ParameterThreshold(0.0, 0.0)
                    continue
                if one.rule.ahead is not None and id(param) in ahead:
                    group = {**group, "decoupled_weight_decay": True} if one.rule.decoupled else group
                    newest = coupled_gradient(group, param, scale * ahead[id(param)])
                    state = one.rule.ahead(group, state, newest, param)
                thresholds[id(param)] = one.rule.threshold(group, state, param).scaled(scale)
    if not maximizes(optimizers) and any(maximizes([optimizer]) for optimizer in optimizers):
        return Thresholds(None, names, "some of the optimizers maximize, and others minimize")
    if found and not thresholds:
        return Thresholds(None, names, "the optimizers hold other tensors than the model's parameters")
    still = ParameterThreshold(0.0, 0.0)
    return Thresholds(tuple(thresholds.get(id(param), still) for param in params), names)


def awaits_first_step(optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Whether any of the optimizers is adaptive and has not made a step yet, so that it has no preconditioner.

    >>> awaits_first_step([torch.optim.Adam([torch.zeros(1, requires_grad=True)])])
    True
    """
    found = [recognised(optimizer) for optimizer in optimizers]
    return any(one.rule is not None and one.rule.adaptive and not _has_stepped(one.optimizer) for one in found)


def range_of_ratios(values: Sequence[Scale], others: Sequence[Scale], layout: Layout) -> tuple[float, float]:
    """The least and the largest value / other over all entries where the other is not 0."""
    least, largest = float("inf"), 0.0
    for pair in zip(values, others, strict=True):
        value, other = (torch.as_tensor(local(v) if isinstance(v, Tensor) else v) for v in pair)
        ratios = (value / other)[other > 0]
        if len(ratios):
            least, largest = min(least, float(ratios.min())), max(largest, float(ratios.max()))
    return layout.extremes(least, largest)


def is_one(least: float, largest: float) -> bool:
    """Whether a range is one number, up to rounding."""
    return largest - least <= 1e-4 * largest


def _has_stepped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has made a step with any of its parameters."""
    return any(
        steps(readable(optimizer, group, optimizer.state.get(param, {}))[1])
        for group in optimizer.param_groups
        for param in group["params"]
    )


def _checked_scales(given: Sequence[float | None] | None, count: int) -> tuple[float | None, ...]:
    scales = (1.0,) * count if given is None else tuple(None if scale is None else float(scale) for scale in given)
    if len(scales) != count or not all(scale is None or 0.0 <= scale < float("inf") for scale in scales):
        raise ValueError(f"expected {count} finite gradient scales >= 0, one for each optimizer, got {given}")
    return scales
