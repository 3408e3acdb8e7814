"""Which rule an optimizer follows, found by what it computes: its `step`, or else its options and its state."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_topo.stability import _optimizer_thresholds as rules
from lightning_topo.stability._displacements import agreement, displacement
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


_TRUSTED = frozenset(
    {"torch", "apex", "deepspeed", "bitsandbytes", "schedulefree", "accelerate", "transformers"}
    | {"lightning", "pytorch_lightning", "lightning_fabric"}
)
"""Packages whose classes compute what their options and state say; wrappers from them move nothing of their own."""

_PLAIN_WRAPPERS = frozenset({"SAM", "ASAM"})
"""Other wrappers that step by the optimizer inside alone: theirs is the threshold of plain steps."""

_TOLERANCE = 0.01
"""So far may a step be from that of its rule, relative to its length."""

_CHECKED: "WeakKeyDictionary[torch.optim.Optimizer, Tensor]" = WeakKeyDictionary()
"""Whether the steps of classes from elsewhere were those of their rule: 1, -1 where one was not, 0 where none tells."""


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

    A class may have Adam's options and state and step otherwise. Unless it comes from a package that is known not to,
    it has a rule once `check_step` has seen that its step is that of the rule.

    >>> class Own(torch.optim.Adam):
    ...     pass
    >>> recognised(Own([torch.zeros(1, requires_grad=True)])).rule.name
    'Adam'
    """
    *wrappers, inner = _layers(optimizer)
    name = type(inner).__name__

    def nothing(reason: str) -> Recognised:
        return Recognised(inner, None, f"{name}: {reason}")

    for wrapper in wrappers:
        if not (_is_trusted(wrapper) or type(wrapper).__name__ in _PLAIN_WRAPPERS):
            reason = f"what it does beside the step of {name} is not known"
            return Recognised(inner, None, f"{type(wrapper).__name__}: {reason}")
    if len({bool(group.get("maximize", False)) for group in inner.param_groups}) > 1:
        return nothing("it maximizes in some of its groups, and minimizes in others")
    heritage = _heritage(inner)
    if heritage in _NO_THRESHOLD:
        return nothing(_NO_THRESHOLD[heritage])
    if heritage is not None:
        return Recognised(inner, _KNOWN[heritage])
    found = _by_layout(inner)
    if isinstance(found, str):
        return nothing(found)
    if found is not rules.SCHEDULE_FREE and not _is_trusted(inner):
        checked = int(_CHECKED[inner]) if inner in _CHECKED else 0
        if checked < 0:
            return nothing(f"its step is not that of {found.name}, though its options and state are")
        # Before its first step an adaptive one has no threshold yet, and may have one.
        if checked == 0 and not (found.adaptive and not any(inner.state.values())):
            return nothing(f"whether its step is that of {found.name} is not known")
    return Recognised(inner, found)


def check_step(optimizer: torch.optim.Optimizer, before: Mapping[int, Tensor]) -> None:
    """Compare the step that was just taken from these values, by ids of parameters, with the rule's; waits for nothing.

    Only of classes that might step otherwise than their options and state say. The gradients are still those taken.
    """
    *wrappers, inner = _layers(optimizer)
    rule = None if wrappers or _heritage(inner) is not None or _is_trusted(inner) else _by_layout(inner)
    if rule is None or isinstance(rule, str):
        return
    total: Tensor | None = None
    with torch.no_grad():
        for group, param in ((g, p) for g in inner.param_groups for p in g["params"]):
            start = before.get(id(param))
            if start is None or param.grad is None or param.grad.is_sparse:
                continue
            options, state = readable(inner, group, inner.state.get(param, {}))
            if (expected := displacement(rule, options, state, start, param.grad)) is not None:
                found = agreement(param - start, expected, param)
                total = found if total is None else total + found.to(total.device)
    if total is None:
        return
    error, length, rounding = total
    fits, tells = error <= _TOLERANCE**2 * length + 4.0 * rounding, length > 100.0 * rounding
    verdict = torch.where(fits, tells.long(), -1)
    known = _CHECKED.get(inner)
    both = verdict if known is None else torch.where(known < 0, known, torch.where(verdict == 0, known, verdict))
    _CHECKED[inner] = both


def _is_trusted(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.partition(".")[0] in _TRUSTED


def _by_layout(inner: torch.optim.Optimizer) -> Rule | str:
    """The rule with the same options and state, or why there is none."""
    options = _options(inner)
    states = [readable(inner, group, state)[1] for group, state in _pairs(inner) if state]
    if any(_quantised(state) for state in states):
        return "its state is quantised and cannot be read"
    present = {key for state in states for key in state if key != "step"}
    if {"weight_lr_power", "weight_sum", "r", "k"} <= options:
        return rules.SCHEDULE_FREE
    if "betas" in options and "eps" not in options and present <= {"exp_avg"}:
        return "its step follows signs: it does not shrink with the gradient"
    for rule in _LAYOUTS:
        required = {"lr", "betas", "eps"} | ({"momentum_decay"} & rule.options)
        optional = {"max_exp_avg_sq"} if rule is rules.ADAM else set()
        if required <= options <= rule.options and present - optional in (rule.state, frozenset()):
            return rule
    if {"lr", "momentum", "dampening"} <= options <= rules.SGD.options and present <= {"momentum_buffer"}:
        return rules.SGD
    return "its rule is not known"


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
    return _layers(optimizer)[-1]


def _layers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer, and what it wraps in turn; the last one steps."""
    layers = [optimizer]
    while True:
        inside = (vars(layers[-1]).get(name) for name in _WRAPPED)
        found = next((one for one in inside if isinstance(one, torch.optim.Optimizer)), None)
        if found is None or any(found is known for known in layers):
            return layers
        layers.append(found)


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
