"""The rule of each optimizer, from which its stability threshold follows: one row an optimizer.

A rule reads an optimizer's options and state by name, so that fused and foreign forms with the same layout share it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Scale = float | Float[Tensor, "..."]
"""One value for a whole parameter, or one for each of its entries."""

Options = Mapping[str, Any]
"""A parameter group's options, or a parameter's state, by name."""


@dataclass(frozen=True, slots=True)
class ParameterThreshold:
    """The factors by which an optimizer's step scales the curvature of the loss along one parameter.

    The step is Delta = -lr / D * (w g + history), entry by entry: g is the newest gradient, w its weight and D the
    optimizer's preconditioner. The edge coefficient c says how much curvature the optimizer bears: with a constant D it
    is stable while lr lambda / D < c, and c = 2 for plain gradient descent. `parameter_thresholds` lists c, w and D of
    each optimizer. A field is one number, or a tensor shaped as the parameter.

    Attributes:
        stability: S = lr / (c D). With H the Hessian and wd the weight decay below, training is stable while
            lambda_max(S^1/2 (H + wd) S^1/2) < 1.
        step: M = lr w / D: how far the newest gradient moves the parameter in the step, per unit of gradient.
        weight_decay: wd, the weight decay as an addition to the diagonal of H; 0 if c accounts for it.
        total: T: how far a gradient moves the parameter in all, over the steps in which momentum carries it on, per
            unit of gradient. For SGD with momentum mu, without dampening, it is lr / (1 - mu).
    """

    stability: Scale
    step: Scale
    weight_decay: Scale = 0.0
    total: Scale = 0.0

    def scaled(self, factor: float) -> "ParameterThreshold":
        """Return the threshold if the optimizer is given `factor` times the gradient, as after gradient clipping.

        S, M and T are multiplied by `factor`. The weight decay is divided by it, as the optimizer adds it afterwards.

        >>> ParameterThreshold(0.5, 1.0, 0.1, 1.0).scaled(0.5)
        ParameterThreshold(stability=0.25, step=0.5, weight_decay=0.2, total=0.5)
        """
        if factor == 1.0:
            return self
        if factor == 0.0:
            return ParameterThreshold(0.0, 0.0)
        return ParameterThreshold(
            self.stability * factor, self.step * factor, self.weight_decay / factor, self.total * factor
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """The update rule of a kind of optimizer: how its threshold follows from its options and state.

    `ahead` is an adaptive optimizer's state once it has taken in one more gradient, as far as its preconditioner goes;
    None where the step needs no state. `state` and `options` are the names by which an unknown class is recognised.
    `decoupled` rules never add their weight decay to the gradient, and have no option that says so.
    """

    name: str
    threshold: Callable[[Options, Options, Tensor], ParameterThreshold]
    ahead: Callable[[Options, Options, Tensor, Tensor], Options] | None = None
    state: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    decoupled: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether the preconditioner exists only after a step."""
        return self.ahead is not None


def steps(state: Options) -> float:
    """The number of steps a parameter has taken."""
    return float(state.get("step", 0.0))


def coupled_gradient(group: Options, param: Tensor, gradient: Tensor) -> Tensor:
    """The gradient as the optimizer takes it in: with the weight decay that is coupled to it."""
    # Squares of small numbers vanish in half precision.
    gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    decay = float(group.get("weight_decay", 0.0))
    coupled = decay != 0.0 and not group.get("decoupled_weight_decay", False)
    return gradient + decay * param.detach() if coupled else gradient


def _sgd(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    lr, mu, dampening = (float(group.get(name, 0.0)) for name in ("lr", "momentum", "dampening"))
    if mu == 0.0:
        edge, newest = 2.0, 1.0  # dampening acts on the momentum buffer, and there is none
    elif group.get("nesterov", False):
        edge, newest = 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu), 1.0 + mu
    else:
        edge = 2.0 * (1.0 + mu) / (1.0 - dampening)
        newest = 1.0 - dampening if state.get("momentum_buffer") is not None else 1.0
    total = lr * (1.0 - dampening if mu and not group.get("nesterov", False) else 1.0) / (1.0 - mu) if mu < 1.0 else 0.0
    return ParameterThreshold(lr / edge, lr * newest, float(group.get("weight_decay", 0.0)), total)


def _asgd(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    lr = float(state["eta"]) if steps(state) else float(group["lr"])
    return ParameterThreshold(lr / (2.0 - lr * float(group["lambd"])), lr, float(group["weight_decay"]), lr)


def _adam(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    beta1, beta2 = _betas(group)
    t = steps(state)
    second = state["max_exp_avg_sq"] if group.get("amsgrad", False) else state["exp_avg_sq"]
    if not group.get("bias_correction", True):
        return _averaged(group, beta1, _root(second) + float(group["eps"]))
    return _averaged(group, beta1, (1.0 - beta1**t) * (_root(second / (1.0 - beta2**t)) + float(group["eps"])))


def _radam(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    beta1, beta2 = _betas(group)
    t = steps(state)
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * beta2**t / (1.0 - beta2**t)
    if length <= 5.0:  # too few gradients for a variance: momentum alone
        return _averaged(group, beta1, torch.full_like(_root(state["exp_avg_sq"]), 1.0 - beta1**t))
    rectified = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    root = (_root(state["exp_avg_sq"]) + float(group["eps"])) / math.sqrt(1.0 - beta2**t)
    return _averaged(group, beta1, (1.0 - beta1**t) * root / rectified)


def _adamax(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    beta1, _ = _betas(group)
    return _averaged(group, beta1, (1.0 - beta1 ** steps(state)) * _wide(state["exp_inf"]))


def _nadam(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    beta1, beta2 = _betas(group)
    t, product = steps(state), float(state["mu_product"])
    now, following = (beta1 * (1.0 - 0.5 * 0.96 ** (k * float(group["momentum_decay"]))) for k in (t, t + 1.0))
    gradient = (1.0 - now) / (1.0 - product)
    momentum = following * (1.0 - beta1) / (1.0 - product * following)
    scale = _root(state["exp_avg_sq"] / (1.0 - beta2**t)) + float(group["eps"])
    # For ever the same gradient gives the step ((1 - mu_t) / (1 - P_t) + mu_(t+1) / (1 - P_(t+1))) g / D.
    whole = gradient + following / (1.0 - product * following)
    return _preconditioned(group, 1.0 / (gradient + momentum / (1.0 + beta1)), gradient + momentum, scale, whole)


def _rmsprop(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    second = state["square_avg"]
    if group["centered"]:
        second = second - state["grad_avg"] ** 2
    mu = float(group["momentum"])
    return _preconditioned(group, 1.0 + mu, 1.0, _root(second) + float(group["eps"]), 1.0 / (1.0 - mu))


def _adagrad(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    slowed = 1.0 + steps(state) * float(group["lr_decay"])
    return _preconditioned(group, 1.0, 1.0, (_root(state["sum"]) + float(group["eps"])) * slowed, 1.0)


def _adadelta(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    eps = float(group["eps"])
    scale = _root(state["square_avg"] + eps) / _root(state["acc_delta"] + eps)
    return _preconditioned(group, 1.0, 1.0, scale, 1.0)


def _adafactor(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    first, second = group["eps"]
    first = torch.finfo(param.dtype).eps if first is None else float(first)
    if "row_var" in state:
        rows, columns = _wide(state["row_var"]), _wide(state["col_var"])
        variance = rows @ columns / rows.mean(dim=-2, keepdim=True).clamp_min(first)
    else:
        variance = _wide(state["variance"])
    root = variance.clamp_min(first * first).sqrt()
    lr = float(group["lr"])
    relative = max(float(second), _rms(param)) * min(lr, 1.0 / math.sqrt(steps(state)))
    if "gradient" in state:  # a large update is clipped
        relative /= max(1.0, _rms(state["gradient"] / root) / float(group["d"]))
    width = 2.0 - lr * float(group["weight_decay"])
    return ParameterThreshold(relative / width / root, relative / root, 0.0, relative / root)


def _schedule_free(group: Options, state: Options, param: Tensor) -> ParameterThreshold:
    """z' = z - lr (g(y) / D + wd y), x' = (1-c) x + c z', y = b x + (1-b) z: the root -1 of its two-term recursion."""
    b = float(group["betas"][0] if "betas" in group else group["momentum"])
    lr, k = float(group["scheduled_lr"]), float(group["k"])
    weight = k ** float(group["r"]) * float(group["lr_max"]) ** float(group["weight_lr_power"])
    total = float(group["weight_sum"])
    c = weight / total if total > 0.0 else 1.0
    edge = (4.0 - 2.0 * c) / ((1.0 - b) * (2.0 - c) + b * c)
    scale: Scale = 1.0
    if "exp_avg_sq" in state:
        t = steps(state) if "step" in state else k
        scale = _root(state["exp_avg_sq"] / (1.0 - float(group["betas"][1]) ** t)) + float(group["eps"])
    newest = (1.0 - b) + b * c
    step = lr * newest / scale  # z carries it on, but only as fast as the mean follows
    return ParameterThreshold(lr / edge / scale, step, float(group["weight_decay"]) * scale, step)


def _averaged(group: Options, beta1: float, scale: Tensor) -> ParameterThreshold:
    """The threshold where the step is the running mean of gradients over `scale`."""
    return _preconditioned(group, (1.0 + beta1) / (1.0 - beta1), 1.0 - beta1, scale, 1.0)


def _preconditioned(group: Options, edge: float, newest: float, scale: Tensor, whole: float) -> ParameterThreshold:
    """`edge` is c / 2 without weight decay; `newest` and `whole` are a gradient's weight now and over all steps."""
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    decoupled = group.get("decoupled_weight_decay", False)
    width = 2.0 - lr * decay if decoupled else 2.0
    coupled = 0.0 if decoupled else decay
    return ParameterThreshold(lr / (width * edge) / scale, lr * newest / scale, coupled, lr * whole / scale)


def _ahead_moments(group: Options, state: Options, gradient: Tensor, param: Tensor) -> Options:
    """Second moments as a running mean: Adam, RAdam, NAdam, RMSprop, Adadelta."""
    after: dict[str, Any] = {**state, "step": steps(state) + 1.0}
    name = "exp_avg_sq" if "exp_avg_sq" in state else "square_avg"
    beta = float(group["betas"][1] if "betas" in group else group["alpha" if "alpha" in group else "rho"])
    after[name] = beta * state[name] + (1.0 - beta) * gradient**2
    if "max_exp_avg_sq" in state:
        after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], after[name])
    if "grad_avg" in state:
        after["grad_avg"] = beta * state["grad_avg"] + (1.0 - beta) * gradient
    if "mu_product" in state:
        now = float(group["betas"][0]) * (1.0 - 0.5 * 0.96 ** (after["step"] * float(group["momentum_decay"])))
        after["mu_product"] = float(state["mu_product"]) * now
    return after


def _ahead_sum(group: Options, state: Options, gradient: Tensor, param: Tensor) -> Options:
    # Adagrad's decayed learning rate is that of the step to come already.
    return {**state, "sum": state["sum"] + gradient**2}


def _ahead_largest(group: Options, state: Options, gradient: Tensor, param: Tensor) -> Options:
    largest = torch.maximum(_betas(group)[1] * state["exp_inf"], gradient.abs() + float(group["eps"]))
    return {**state, "step": steps(state) + 1.0, "exp_inf": largest}


def _ahead_factors(group: Options, state: Options, gradient: Tensor, param: Tensor) -> Options:
    t = steps(state) + 1.0
    share = t ** float(group["beta2_decay"])
    after: dict[str, Any] = {**state, "step": t, "gradient": gradient}
    squared = gradient**2
    if "row_var" in state:
        after["row_var"] = torch.lerp(_wide(state["row_var"]), squared.mean(dim=-1, keepdim=True), share)
        after["col_var"] = torch.lerp(_wide(state["col_var"]), squared.mean(dim=-2, keepdim=True), share)
    else:
        after["variance"] = torch.lerp(_wide(state["variance"]), squared, share)
    return after


def _ahead_schedule_free(group: Options, state: Options, gradient: Tensor, param: Tensor) -> Options:
    if "exp_avg_sq" not in state:
        return state
    beta = float(group["betas"][1])
    moments = beta * state["exp_avg_sq"] + (1.0 - beta) * gradient**2
    return {**state, "exp_avg_sq": moments, "step": float(group["k"]) + 1.0}


def _betas(group: Options) -> tuple[float, float]:
    beta1, beta2 = (float(beta) for beta in group["betas"][:2])
    return beta1, beta2


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _root(second_moment: Tensor) -> Tensor:
    # A centered variance can come out below 0 by rounding.
    return _wide(second_moment).clamp_min(0.0).sqrt()


def _rms(tensor: Tensor) -> float:
    return float(_wide(tensor).norm()) / math.sqrt(max(tensor.numel(), 1))


_ADAM_OPTIONS = frozenset({"lr", "betas", "eps", "weight_decay"})
SGD = Rule("SGD", _sgd, None, frozenset(), frozenset({"lr", "momentum", "dampening", "weight_decay", "nesterov"}))
ADAM = Rule(
    "Adam",
    _adam,
    _ahead_moments,
    frozenset({"exp_avg", "exp_avg_sq"}),
    _ADAM_OPTIONS | {"amsgrad", "decoupled_weight_decay", "bias_correction"},
)
RADAM = Rule("RAdam", _radam, _ahead_moments)
ADAMAX = Rule("Adamax", _adamax, _ahead_largest, frozenset({"exp_avg", "exp_inf"}), _ADAM_OPTIONS)
NADAM = Rule(
    "NAdam",
    _nadam,
    _ahead_moments,
    frozenset({"exp_avg", "exp_avg_sq", "mu_product"}),
    _ADAM_OPTIONS | {"momentum_decay", "decoupled_weight_decay"},
)
RMSPROP = Rule("RMSprop", _rmsprop, _ahead_moments)
ADAGRAD = Rule("Adagrad", _adagrad, _ahead_sum)
ADADELTA = Rule("Adadelta", _adadelta, _ahead_moments)
ADAFACTOR = Rule("Adafactor", _adafactor, _ahead_factors, decoupled=True)
ASGD = Rule("ASGD", _asgd)
SCHEDULE_FREE = Rule("schedule-free", _schedule_free, _ahead_schedule_free)
