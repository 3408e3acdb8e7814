"""How an optimizer scales the curvature: one number for the edge of stability of every optimizer.

A step is linear in the newest gradient g, entry by entry: Delta = -lr / D * (w g + history), with D the preconditioner
and w the weight of the newest gradient. On a quadratic loss with Hessian H and a constant D the iteration is stable
while lambda_max(S^1/2 H S^1/2) < 1 with S = diag(lr / (c D)); c is the edge coefficient, at which the characteristic
polynomial of the iteration has the root -1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability.hessian import shaped, whole

Scale = float | Float[Tensor, "..."]
"""One value for a whole parameter, or one for each of its entries."""


@dataclass(frozen=True, slots=True)
class ParameterScaling:
    """How the curvature along one parameter enters the optimizer's step.

    `stability` is S = lr / (c D): the edge of stability is at lambda_max(S^1/2 H S^1/2) = 1. `step` is M = lr w / D.
    Both are numbers where D is 1, else tensors shaped as the parameter. `weight_decay` adds to the curvature where
    the optimizer couples it to the gradient.
    """

    stability: Scale
    step: Scale
    weight_decay: float = 0.0


def parameter_scalings(
    optimizers: Iterable[torch.optim.Optimizer],
    params: Iterable[Tensor],
    gradient: Float[Tensor, " p"] | None = None,
) -> tuple[ParameterScaling, ...] | None:
    """The scaling of each parameter in the next step, or None where a threshold is not known.

    | optimizer | c | w | D |
    |---|---|---|---|
    | SGD, momentum mu, dampening d | 2 (1+mu) / (1-d) | 1-d (1 on a buffer's first step) | 1 |
    | SGD, Nesterov | 2 (1+mu) / (1+2mu) | 1+mu | 1 |
    | Adam, AMSGrad | 2 (1+b1) / (1-b1) | 1-b1 | (1-b1^t) (sqrt(v_hat) + eps) |
    | NAdam | 2 / (A + B (1-b1) / (1+b1)) | A + B (1-b1) | sqrt(v_hat) + eps |
    | RMSprop, momentum mu | 2 (1+mu) | 1 | sqrt(v) + eps; centered: v less the squared mean gradient |
    | Adagrad | 2 | 1 | sqrt(sum) + eps, with lr / (1 + t lr_decay) for lr |

    NAdam: A = (1-mu_t) / (1-P_t) and B = mu_(t+1) / (1 - P_t mu_(t+1)), with P_t its `mu_product`. Where the weight
    decay wd is decoupled (AdamW), 2 - lr wd takes the place of 2 in c. The learning rate is the one in force now.

    The moments are those behind the last step, t. With the flat `gradient` of `params` where they stand, they are those
    of the step that would follow: an adaptive optimizer takes a gradient into its second moments before it divides by
    them. It matters for entries that have hardly had a gradient so far: without, D is eps for them, as in no step.

    None for any other optimizer, for `maximize=True`, and as long as `awaits_first_step`. A parameter that no
    optimizer holds, or that an adaptive one has never moved, has scaling 0.

    Source: Cohen et al., arXiv:2103.00065, appendix B (momentum and Nesterov); arXiv:2207.14484 (adaptive methods).

    >>> theta = torch.zeros(3, requires_grad=True)
    >>> parameter_scalings([torch.optim.SGD([theta], lr=0.5)], [theta])
    (ParameterScaling(stability=0.25, step=0.5, weight_decay=0.0),)
    """
    optimizers = tuple(optimizers)
    if awaits_first_step(optimizers):
        return None
    still = ParameterScaling(stability=0.0, step=0.0)
    params = tuple(params)
    ahead = {} if gradient is None else {id(p): g for p, g in zip(params, shaped(gradient, params), strict=True)}
    found: dict[int, ParameterScaling] = {}
    for optimizer in optimizers:
        rule = _RULES.get(type(optimizer))
        for group in optimizer.param_groups:
            if rule is None or group.get("maximize", False):
                return None
            for param in group["params"]:
                state = optimizer.state.get(param, {})
                moved = type(optimizer) not in _ADAPTIVE or _steps(state) > 0
                if moved and type(optimizer) in _ADAPTIVE and id(param) in ahead:
                    state = _following(group, state, _decayed(group, param, ahead[id(param)]))
                found[id(param)] = rule(group, state) if moved else still
    return tuple(found.get(id(param), still) for param in params)


def _decayed(group: "_Options", param: Tensor, gradient: Tensor) -> Tensor:
    """The gradient as the optimizer takes it in: with the weight decay that is coupled to it."""
    # Squares of small numbers vanish in half precision.
    gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    decay = float(group["weight_decay"])
    coupled = decay != 0.0 and not group.get("decoupled_weight_decay", False)
    return gradient + decay * param.detach() if coupled else gradient


def _following(group: "_Options", state: "_Options", gradient: Tensor) -> dict[str, Any]:
    """An adaptive optimizer's state once it has taken in a gradient, as far as its preconditioner goes."""
    squared = gradient**2
    if "sum" in state:  # Adagrad's decayed learning rate is that of the step to come already
        return dict(state) | {"sum": state["sum"] + squared}
    after: dict[str, Any] = {**state, "step": _steps(state) + 1.0}
    name = "exp_avg_sq" if "exp_avg_sq" in state else "square_avg"
    beta = float(group["betas"][1] if "betas" in group else group["alpha"])
    after[name] = beta * state[name] + (1.0 - beta) * squared
    if "max_exp_avg_sq" in state:
        after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], after[name])
    if "grad_avg" in state:
        after["grad_avg"] = beta * state["grad_avg"] + (1.0 - beta) * gradient
    if "mu_product" in state:
        now = float(group["betas"][0]) * (1.0 - 0.5 * 0.96 ** (after["step"] * float(group["momentum_decay"])))
        after["mu_product"] = float(state["mu_product"]) * now
    return after


def awaits_first_step(optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Whether one of them is adaptive and has not stepped yet, so that its preconditioner does not exist.

    >>> awaits_first_step([torch.optim.Adam([torch.zeros(1, requires_grad=True)])])
    True
    """
    return any(
        type(optimizer) in _ADAPTIVE and not any(_steps(state) for state in optimizer.state.values())
        for optimizer in optimizers
    )


def spread(values: Sequence[Scale], params: Sequence[Tensor]) -> Float[Tensor, " p"]:
    """One value per parameter, or one per entry, as a flat vector with one per entry, in at least float32."""
    return torch.cat(
        [
            torch.as_tensor(
                whole(value) if isinstance(value, Tensor) else value,
                dtype=torch.promote_types(p.dtype, torch.float32),
                device=p.device,
            )
            .expand(p.shape)
            .reshape(-1)
            for value, p in zip(values, params, strict=True)
        ]
    )


_Options = Mapping[str, Any]


def _steps(state: _Options) -> float:
    return float(state.get("step", 0.0))


def _sgd(group: _Options, state: _Options) -> ParameterScaling:
    lr, mu, dampening = (float(group[name]) for name in ("lr", "momentum", "dampening"))
    if mu == 0.0:
        edge, newest = 2.0, 1.0  # dampening acts on the momentum buffer, and there is none
    elif group["nesterov"]:
        edge, newest = 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu), 1.0 + mu
    else:
        edge = 2.0 * (1.0 + mu) / (1.0 - dampening)
        newest = 1.0 - dampening if state.get("momentum_buffer") is not None else 1.0
    return ParameterScaling(lr / edge, lr * newest, float(group["weight_decay"]))


def _adam(group: _Options, state: _Options) -> ParameterScaling:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    t = _steps(state)
    second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    scale = (1.0 - beta1**t) * (_root(second / (1.0 - beta2**t)) + float(group["eps"]))
    return _preconditioned(group, (1.0 + beta1) / (1.0 - beta1), 1.0 - beta1, scale)


def _adamw(group: _Options, state: _Options) -> ParameterScaling:
    # Before torch 2.7 a class of its own, which does not say so in its groups.
    return _adam({**group, "decoupled_weight_decay": True}, state)


def _nadam(group: _Options, state: _Options) -> ParameterScaling:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    t, product = _steps(state), float(state["mu_product"])
    now, following = (beta1 * (1.0 - 0.5 * 0.96 ** (k * float(group["momentum_decay"]))) for k in (t, t + 1.0))
    gradient = (1.0 - now) / (1.0 - product)
    momentum = following * (1.0 - beta1) / (1.0 - product * following)
    scale = _root(state["exp_avg_sq"] / (1.0 - beta2**t)) + float(group["eps"])
    return _preconditioned(group, 1.0 / (gradient + momentum / (1.0 + beta1)), gradient + momentum, scale)


def _rmsprop(group: _Options, state: _Options) -> ParameterScaling:
    second = state["square_avg"]
    if group["centered"]:
        second = second - state["grad_avg"] ** 2
    return _preconditioned(group, 1.0 + float(group["momentum"]), 1.0, _root(second) + float(group["eps"]))


def _adagrad(group: _Options, state: _Options) -> ParameterScaling:
    slowed = 1.0 + _steps(state) * float(group["lr_decay"])
    return _preconditioned(group, 1.0, 1.0, (_root(state["sum"]) + float(group["eps"])) * slowed)


def _preconditioned(group: _Options, edge: float, newest: float, scale: Tensor) -> ParameterScaling:
    """`edge` is c / 2 without weight decay."""
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    decoupled = group.get("decoupled_weight_decay", False)
    width = 2.0 - lr * decay if decoupled else 2.0
    return ParameterScaling(lr / (width * edge) / scale, lr * newest / scale, 0.0 if decoupled else decay)


def _root(second_moment: Tensor) -> Tensor:
    # A centered variance can come out below 0 by rounding.
    wide = torch.promote_types(second_moment.dtype, torch.float32)
    return second_moment.detach().to(wide).clamp_min(0.0).sqrt()


_ADAPTIVE: dict[type, Callable[[_Options, _Options], ParameterScaling]] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.NAdam: _nadam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
_RULES = {torch.optim.SGD: _sgd, **_ADAPTIVE}
