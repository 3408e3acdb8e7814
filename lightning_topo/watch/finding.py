"""Finding the neurons of the module that trains, on its own first step as that runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import FoundNeurons, NeuronGroup, Rows, groups_from_tapes
from lightning_topo.neurons.capture import sharding
from lightning_topo.tape import Tape
from lightning_topo.watch.training import Training

_REMEDY = "Name the groups by hand: TopologyMonitor(groups=declare_neurons(module, ...))."


@dataclass(frozen=True, slots=True)
class Problem:
    """A group that could not be found or proved, and what would help."""

    message: str
    group: str = GLOBAL
    remedy: str = _REMEDY


class Finding:
    """The groups of neurons of one training, found on a recorded step.

    `problems` and `uncovered` say what was not found: groups without proof, and trained parameters in no group.
    """

    def __init__(self, training: Training, declared: Sequence[Any] | None, seed: int) -> None:
        self.sharding = sharding(training.root)
        self.problems: list[Problem] = []
        self.uncovered: dict[str, str] = {}
        self._training, self._seed = training, seed
        self._is_complete = declared is not None and not any(isinstance(one, str) for one in declared)
        self._declared = tuple(one for one in declared or () if isinstance(one, NeuronGroup))
        # Rows of a parameter are a cloud by the user's word: there is nothing to prove.
        self._rows = tuple(
            group for one in declared or () if isinstance(one, Rows) for group in one.resolve(training.module)
        )

    def groups(self, tapes: Sequence[Tape], obstacle: str) -> tuple[NeuronGroup, ...]:
        """The groups that these tapes show, the same on every process. A collective."""
        found: FoundNeurons = self._training.ranks.first("groups", lambda: self._found(tapes, obstacle))
        self.uncovered = {coverage.param: coverage.reason for coverage in found.uncovered}
        self.problems = list(_problems(found, obstacle))
        return tuple(group for group in found.groups if group.n > 1)

    def _found(self, tapes: Sequence[Tape], obstacle: str) -> FoundNeurons:
        if obstacle or not tapes:
            groups = (*self._declared, *self._rows)
            return FoundNeurons(groups, (), () if groups else (obstacle or "the step had no loss to follow",))
        found = groups_from_tapes(
            tapes,
            module=self._training.module,
            declared=self._declared,
            include=() if self._is_complete else ("*",),
            seed=self._seed,
        )
        return replace(found, groups=(*found.groups, *self._rows))


def _problems(found: FoundNeurons, obstacle: str) -> list[Problem]:
    """What a person should know of groups that were not found, or not proved."""
    if not any(group.n > 1 for group in found.groups):
        reason = obstacle or "; ".join(found.refused) or "the module has no group of two or more exchangeable neurons"
        return [Problem(f"No neurons found: {reason}.")]
    problems = [Problem(f"A loss was not followed: {reason}.") for reason in dict.fromkeys(found.refused)]
    return problems + [
        Problem(f"The neurons of {group.name} are taken without what reads them: {group.reason}", group.name)
        for group in found.groups
        if group.status == "incoming_only"
    ]
