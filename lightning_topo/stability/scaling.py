"""How an optimizer scales the curvature: one number for the edge of stability of every optimizer.

A step is linear in the newest gradient g, parameter by parameter: Delta = -lr / D * (w g + history). On a quadratic
loss with Hessian H the iteration is stable while lambda_max(S^1/2 H S^1/2) < 1 with S = diag(lr / (c D)).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ParameterScaling:
    """How the curvature along one parameter enters the optimizer's step.

    `stability` is S = lr / (c D), with c the edge coefficient and D the preconditioner: the edge of stability is at
    lambda_max(S^1/2 H S^1/2) = 1. `step` is M = lr w / D, with w the weight of the newest gradient in the step.
    `weight_decay` adds to the curvature where the optimizer couples it to the gradient.
    """

    stability: float
    step: float
    weight_decay: float = 0.0


def parameter_scalings(
    optimizers: Iterable[torch.optim.Optimizer], params: Iterable[Tensor]
) -> tuple[ParameterScaling, ...] | None:
    """The scaling of each parameter, or None where an optimizer's threshold is not known.

    Known: `torch.optim.SGD` with momentum mu, dampening d and Nesterov's variant, for which D = 1 and

        c = 2 (1 + mu) / (1 - d),   Nesterov: 2 (1 + mu) / (1 + 2 mu)
        w = 1 - d (1 on a momentum buffer's first step),   Nesterov: 1 + mu

    A parameter that no optimizer holds does not move: its scaling is 0.

    Source: Cohen et al., arXiv:2103.00065, appendix B (momentum and Nesterov).

    >>> theta = torch.zeros(3, requires_grad=True)
    >>> parameter_scalings([torch.optim.SGD([theta], lr=0.5)], [theta])
    (ParameterScaling(stability=0.25, step=0.5, weight_decay=0.0),)
    """
    found: dict[int, ParameterScaling] = {}
    for optimizer in optimizers:
        rule = _RULES.get(type(optimizer))
        for group in optimizer.param_groups:
            if rule is None or group.get("maximize", False):
                return None
            for param in group["params"]:
                found[id(param)] = rule(group, optimizer.state.get(param, {}))
    still = ParameterScaling(stability=0.0, step=0.0)
    return tuple(found.get(id(param), still) for param in params)


def _sgd(group: dict[str, Any], state: dict[str, Any]) -> ParameterScaling:
    lr, mu, dampening = (float(group[name]) for name in ("lr", "momentum", "dampening"))
    if mu == 0.0:
        edge, newest = 2.0, 1.0  # dampening acts on the momentum buffer, and there is none
    elif group["nesterov"]:
        edge, newest = 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu), 1.0 + mu
    else:
        edge = 2.0 * (1.0 + mu) / (1.0 - dampening)
        newest = 1.0 - dampening if state.get("momentum_buffer") is not None else 1.0
    return ParameterScaling(lr / edge, lr * newest, float(group["weight_decay"]))


_RULES: dict[type, Callable[[dict[str, Any], dict[str, Any]], ParameterScaling]] = {torch.optim.SGD: _sgd}
