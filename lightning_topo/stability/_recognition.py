"""Which rule an optimizer follows, found by what it computes: its `step`, or else its options and its state."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_topo.stability import _optimizer_thresholds as rules
from lightning_topo.stability._optimizer_thresholds import Options, Rule

_KNOWN: dict[str, Rule] = {
    "SGD": rules.SGD,
    "Adam": rules.ADAM,
    "AdamW": rules.ADAM,
    "RAdam": rules.RADAM,
    "Adamax": rules.ADAMAX,
    "NAdam": rules.NADAM,
    "RMSprop": rules.RMSPROP,
    "Adagrad": rules.ADAGRAD,
    "Adadelta": rules.ADADELTA,
    "Adafactor": rules.ADAFACTOR,
    "ASGD": rules.ASGD,
}

_NO_THRESHOLD = {
    "LBFGS": "its step comes from a model of the curvature, not from a learning rate",
    "Rprop": "its step follows the signs of the gradient, whatever its size",
    "SparseAdam": "its moments are not updated where a gradient is sparse",
    "Muon": "its step is orthogonalised: it does not shrink with the gradient",
}

_LAYOUTS = (rules.ADAM, rules.NADAM, rules.ADAMAX)

_WRAPPED = ("base_optimizer", "optimizer", "inner_optimizer", "_optimizer", "optim")
"""The attributes in which wrappers (SAM, Lookahead, Accelerate, DeepSpeed, ...) keep the optimizer that steps."""

_INDIFFERENT = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "lr_scale"}
    | {"maximize", "foreach", "fused", "capturable", "differentiable", "set_grad_none", "step"}
)
"""Options that change how a step is computed or scheduled, not what it is."""

_BLOCKWISE = frozenset(
    {"alpha", "t_alpha", "beta3", "optim_bits", "min_8bit_size", "percentile_clipping", "block_wise", "max_unorm"}
    | {"skip_zeros", "is_paged"}
)
"""Options of bitsandbytes that do not change the step of its Adam."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """An optimizer and the update rule by which its stability threshold is computed: the result of `recognised`.

    Attributes:
        optimizer: The optimizer inside all wrappers.
        rule: The update rule, with its name in `rule.name`; None if there is none.
        reason: Why there is no rule; None if there is one.
    """

    optimizer: torch.optim.Optimizer
    rule: Rule | None
    reason: str | None = None


def recognised(optimizer: torch.optim.Optimizer) -> Recognised:
    """Find the update rule of an optimizer, inside its wrappers.

    A class has the rule of the torch optimizer whose `step` it inherits, or else the rule of the torch optimizer
    whose options and state have the same layout. There is no rule, but a reason, for an optimizer that has unknown
    options or state, or maximizes in some of its groups only. There is none either if the step is not proportional to
    the gradient (LBFGS, Muon). The rule of an optimizer that maximizes is that for the loss times -1.

    >>> class Own(torch.optim.Adam):
    ...     pass
    >>> recognised(Own([torch.zeros(1, requires_grad=True)])).rule.name
    'Adam'
    """
    inner = unwrapped(optimizer)
    name = type(inner).__name__

    def nothing(reason: str) -> Recognised:
        return Recognised(inner, None, f"{name}: {reason}")

    if len({bool(group.get("maximize", False)) for group in inner.param_groups}) > 1:
        return nothing("it maximizes in some of its groups, and minimizes in others")
    heritage = _heritage(inner)
    if heritage in _NO_THRESHOLD:
        return nothing(_NO_THRESHOLD[heritage])
    if heritage is not None:
        return Recognised(inner, _KNOWN[heritage])
    options = _options(inner)
    states = [readable(inner, group, state)[1] for group, state in _pairs(inner) if state]
    if any(_quantised(state) for state in states):
        return nothing("its state is quantised and cannot be read")
    present = {key for state in states for key in state if key != "step"}
    if {"weight_lr_power", "weight_sum", "r", "k"} <= options:
        return Recognised(inner, rules.SCHEDULE_FREE)
    if "betas" in options and "eps" not in options and present <= {"exp_avg"}:
        return nothing("its step follows signs: it does not shrink with the gradient")
    for rule in _LAYOUTS:
        required = {"lr", "betas", "eps"} | ({"momentum_decay"} & rule.options)
        optional = {"max_exp_avg_sq"} if rule is rules.ADAM else set()
        if required <= options <= rule.options and present - optional in (rule.state, frozenset()):
            return Recognised(inner, rule)
    if {"lr", "momentum", "dampening"} <= options <= rules.SGD.options and present <= {"momentum_buffer"}:
        return Recognised(inner, rules.SGD)
    return nothing("its rule is not known")


def maximizes(optimizers: Iterable[Any]) -> bool:
    """Whether all parameter groups maximize: then it is the loss times -1 that they minimize.

    >>> maximizes([torch.optim.SGD([torch.zeros(1)], lr=0.1, maximize=True)]), maximizes([])
    (True, False)
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return bool(groups) and all(group.get("maximize", False) for group in groups)


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that steps, inside wrappers of wrappers.

    >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> unwrapped(sgd) is sgd
    True
    """
    seen = {id(optimizer)}
    while True:
        inside = (vars(optimizer).get(name) for name in _WRAPPED)
        found = next((one for one in inside if isinstance(one, torch.optim.Optimizer)), None)
        if found is None or id(found) in seen:
            return optimizer
        seen.add(id(found))
        optimizer = found


def readable(optimizer: torch.optim.Optimizer, group: Options, state: Options) -> tuple[Options, Options]:
    """A group's options and a parameter's state under the names of torch.optim."""
    options: dict[str, Any] = dict(group)
    found: dict[str, Any] = dict(state)
    if "state1" in found:  # bitsandbytes decays the weights by themselves
        names = {"state1": "exp_avg", "state2": "exp_avg_sq"}
        found = {names.get(key, key): value for key, value in found.items()}
        options["decoupled_weight_decay"] = True
    if "step" in group and "exp_avg_sq" in found and "step" not in found:  # apex and DeepSpeed count by group
        found["step"] = group["step"]
    mode = getattr(optimizer, "adam_w_mode", None)
    if mode is not None:
        options["decoupled_weight_decay"] = bool(mode)
    if "z" in found:  # schedule-free
        found["step"] = group["k"]
        options["decoupled_weight_decay"] = "exp_avg_sq" in found
        options.setdefault("scheduled_lr", group["lr"])
    elif "decoupled_weight_decay" not in options:
        options["decoupled_weight_decay"] = any("adamw" in kind.__name__.lower() for kind in type(optimizer).__mro__)
    return options, found


def _heritage(optimizer: torch.optim.Optimizer) -> str | None:
    """The class of torch.optim whose `step` is this optimizer's own."""
    step = inspect.unwrap(type(optimizer).step)
    for kind in type(optimizer).__mro__:
        name = kind.__name__
        if getattr(torch.optim, name, None) is kind and inspect.unwrap(kind.step) is step:
            return name if name in _KNOWN or name in _NO_THRESHOLD else None
    return None


def _options(optimizer: torch.optim.Optimizer) -> set[str]:
    names = {name for group in optimizer.param_groups for name in group} - _INDIFFERENT
    if getattr(optimizer, "optimizer_name", None) == "adam":
        names -= _BLOCKWISE
    return names


def _pairs(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Options, Mapping[str, Any]]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield group, optimizer.state.get(param, {})


def _quantised(state: Options) -> bool:
    return any(
        isinstance(value, Tensor) and name.startswith(("exp_avg", "momentum_buffer")) and not value.is_floating_point()
        for name, value in state.items()
    )
