"""How far a rule moves a parameter, from its state: what a step that follows the rule has really done."""

import torch
from torch import Tensor

from lightning_topo.stability import _optimizer_thresholds as rules
from lightning_topo.stability._optimizer_thresholds import Options, Rule, coupled_gradient, steps


def displacement(rule: Rule, group: Options, state: Options, before: Tensor, gradient: Tensor) -> Tensor | None:
    """The step of SGD, Adam, Adamax or NAdam from `before`, given the state after it; None where that does not tell.

    >>> group, theta = {"lr": 0.1, "momentum": 0.0}, torch.ones(1)
    >>> displacement(rules.SGD, group, {}, theta, torch.ones(1)), displacement(rules.ASGD, group, {}, theta, theta)
    (tensor([-0.1000]), None)
    """
    if group.get("maximize", False):
        gradient = -gradient
    taken, lr = coupled_gradient(group, before, gradient), float(group["lr"])
    if rule is rules.SGD:
        direction = _sgd(group, state, taken)
        return None if direction is None else -lr * direction
    if rule not in (rules.ADAM, rules.ADAMAX, rules.NADAM) or not steps(state):
        return None
    decay = float(group["weight_decay"]) if group.get("decoupled_weight_decay", False) else 0.0
    return -lr * (_adaptive(rule, group, state, taken) + decay * before)


def _sgd(group: Options, state: Options, taken: Tensor) -> Tensor | None:
    mu, buffer = float(group.get("momentum", 0.0)), state.get("momentum_buffer")
    if mu == 0.0:
        return taken
    if buffer is None:
        return None
    return taken + mu * buffer if group.get("nesterov", False) else buffer


def _adaptive(rule: Rule, group: Options, state: Options, taken: Tensor) -> Tensor:
    (beta1, beta2), t = map(float, group["betas"][:2]), steps(state)
    corrected = bool(group.get("bias_correction", True))
    first, mean = (1.0 - beta1**t if corrected else 1.0), state["exp_avg"]
    if rule is rules.ADAMAX:
        return mean / (first * state["exp_inf"])
    second = state["max_exp_avg_sq"] if group.get("amsgrad", False) else state["exp_avg_sq"]
    root = (second / (1.0 - beta2**t if corrected else 1.0)).sqrt() + float(group["eps"])
    if rule is rules.ADAM:
        return mean / (first * root)
    product, decay = float(state["mu_product"]), float(group["momentum_decay"])
    now, following = (beta1 * (1.0 - 0.5 * 0.96 ** (k * decay)) for k in (t, t + 1.0))
    return ((1.0 - now) / (1.0 - product) * taken + following / (1.0 - product * following) * mean) / root


def agreement(moved: Tensor, expected: Tensor, after: Tensor) -> Tensor:
    """The squares of the distance of two displacements, of the expected one, and of what rounding makes of it."""
    rounding = torch.finfo(after.dtype).eps * after.float().norm()
    lengths = ((moved - expected).float().norm(), expected.float().norm(), rounding)
    return torch.stack([length.square() for length in lengths])
