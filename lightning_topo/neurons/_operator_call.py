"""One call of an operator as rules see it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_topo._tape.program import leaves


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """One call of one operator: its arguments by their names in the schema, and its tensors."""

    name: str
    overload: str
    arguments: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        """The argument's value, or `default` if this overload has no such argument."""
        return self.arguments.get(argument, default)

    @property
    def out(self) -> Tensor:
        """The (first) output."""
        return self.outputs[0]


def operator_call(func: Any, args: Any, kwargs: Any, result: Any) -> OperatorCall:
    """The call with its arguments named as in the operator's schema, defaults filled in."""
    schema = func._schema
    arguments = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(args):
            arguments[argument.name] = args[i]
        elif argument.name in kwargs:
            arguments[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            arguments[argument.name] = argument.default_value
    inputs = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
    return OperatorCall(schema.name.partition("::")[2], func._overloadname, arguments, inputs, outputs)
