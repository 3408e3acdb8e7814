"""The names of a module's parameters, followed as parameters are added, replaced and renamed."""

from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo._tape.names import all_names, clean_name

Form = tuple[torch.Size, torch.dtype]


def form(parameter: Tensor) -> Form:
    """What must stay as it is for two states of a parameter to be compared."""
    return parameter.shape, parameter.dtype


class ParameterNames:
    """Gives each parameter of a module its names; shared ones have several.

    `by_id` holds them by the ids of parameters. `generation` counts up whenever `read` finds others than before.

    >>> module = nn.Sequential(nn.Linear(2, 1))
    >>> names = ParameterNames(module)
    >>> names.of(module[0].weight), names.of(torch.zeros(2)), names.are_current
    (('0.weight',), (), True)
    """

    def __init__(self, module: nn.Module) -> None:
        self.by_id: Mapping[int, tuple[str, ...]] = {}
        self.generation: int = 0
        self._module = module
        self._places: list[tuple[Mapping[str, Any], tuple[str, ...], tuple[Any, ...]]] = []
        self.read()

    def of(self, parameter: Tensor) -> Sequence[str]:
        """The names of a parameter; none where it is not the module's."""
        return self.by_id.get(id(parameter), ())

    def known(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Those of some parameters that are the module's."""
        return [p for p in parameters if id(p) in self.by_id]

    def read(self) -> None:
        """Read the module's parameters anew: some may have been added, replaced or renamed."""
        names: dict[int, list[str]] = {}
        for name, parameter in all_names(self._module.named_parameters):
            names.setdefault(id(parameter), []).append(clean_name(name))
        found = {key: tuple(own) for key, own in names.items()}
        if found != self.by_id:
            self.generation += 1
        self.by_id = found
        modules = list(self._module.modules())
        places: list[Mapping[str, Any]] = [*(m._parameters for m in modules), *(m._modules for m in modules)]
        self._places = [(place, tuple(place), tuple(place.values())) for place in places if place]

    @property
    def are_current(self) -> bool:
        """Whether every module that had parameters, or modules, still has the same under the same names."""
        # Once or twice a step, for every module: tensors are told apart by identity, and the loops are Python's own.
        return all(tuple(now) == names and all(map(is_, now.values(), known)) for now, names, known in self._places)

    def forms(self) -> dict[str, Form]:
        """Shape and dtype of all parameters by each of their names; lazy ones have none yet."""
        pairs = all_names(self._module.named_parameters)
        return {clean_name(name): form(parameter) for name, parameter in pairs if not is_lazy(parameter)}
