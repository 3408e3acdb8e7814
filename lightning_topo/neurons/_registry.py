"""The table of operator rules.

A rule is a function `rule(trace, call)` that reads the axes of the call's inputs with `trace.axes`, ties them
with `trace.unify` or bars them with `trace.freeze`, and says with `trace.assign` what the axes of each output
are. Operators that torch tags as pointwise need none.
"""

from collections.abc import Callable
from typing import Any

Rule = Callable[[Any, Any], None]

_RULES: dict[str, Rule] = {}


def register_rule(operator: str, rule: Rule) -> None:
    """Register the rule by which `find_neuron_groups` and the callbacks trace an operator, for all its overloads.

    Args:
        operator: The operator's name with its namespace, such as `"mylib::op"`.
        rule: A function `rule(trace, call)` that reads the axes of the call's inputs with `trace.axes`, and sets those
            of its outputs with `trace.assign`. It replaces an earlier rule of the operator.

    Raises:
        ValueError: The name has no namespace.

    >>> def attention_pool(trace, call):  # (batch, time, features) -> (batch, features)
    ...     batch, _, features = trace.axes(call["input"])
    ...     trace.assign(call.out, [batch, features])
    >>> register_rule("mylib::attention_pool", attention_pool)
    """
    if "::" not in operator:
        raise ValueError(f"expected an operator as 'namespace::name', got {operator!r}")
    _RULES[operator] = rule


def aten_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for operators of torch itself."""

    def decorate(rule: Rule) -> Rule:
        for name in names:
            register_rule(f"aten::{name}", rule)
        return rule

    return decorate


def rule_for(func: Any) -> Rule | None:
    """The rule of an operator; an in-place operator shares that of its functional form."""
    name = func._schema.name
    rule = _RULES.get(name)
    if rule is None and name.endswith("_") and not name.endswith("__"):
        rule = _RULES.get(name[:-1])
    return rule
