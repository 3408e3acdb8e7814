"""Find the neurons of the training module in its own first step, as that runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_topo._parameter_coverage import NOT_MET, ParameterCoverage
from lightning_topo._protection import without_collection
from lightning_topo._tape import Tape, outside_modes
from lightning_topo._tape.names import clean_name
from lightning_topo._watch.training import Training
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import FoundNeurons, NeuronGroup, Rows, groups_from_tapes
from lightning_topo.neurons._capture import FLAT, Sharding, sharding, whole_copy
from lightning_topo.neurons._coverage import whole_coverage
from lightning_topo.neurons._fallback import incoming_groups
from lightning_topo.neurons._partly_trained import (
    frozen_beside,
    told_apart_by_frozen,
    trained_of,
    with_reason,
)

Join = Callable[[FoundNeurons, FoundNeurons], FoundNeurons]
"""Makes one of what was known before and what a later step shows."""

_NO_LOSS = "the step had no loss to follow"
_PASS_LOSS = (
    "In a loop of your own, pass each loss through `watch.loss(loss)` before its backward pass. Where there is none, "
    "name the groups by hand: TopologyWatch(groups=declare_neurons(module, ...))."
)
_REMEDY = "Name the groups by hand: TopologyMonitor(groups=declare_neurons(module, ...))."


@dataclass(frozen=True, slots=True)
class Problem:
    """A group that could not be found or verified, and a remedy."""

    message: str
    group: str = GLOBAL
    remedy: str = _REMEDY


class Finding:
    """The groups of neurons of one training, found on a recorded step.

    `problems` says which groups are without proof; `coverage` of every parameter its groups, or why it is in none. It
    `is_complete` where all groups are declared, and none are to be found.
    `drawn` are the groups to whose neurons random numbers of their own may go.
    """

    def __init__(self, training: Training, declared: Sequence[Any] | None, seed: int) -> None:
        self.sharding: Sharding = sharding(training.root)
        self.problems: list[Problem] = []
        self.drawn: frozenset[str] = frozenset()
        self.coverage: tuple[ParameterCoverage, ...] = ()
        self._known: FoundNeurons | None = None
        self._training, self._seed = training, seed
        self.is_complete: bool = declared is not None and not any(isinstance(one, str) for one in declared)
        self._declared = tuple(one for one in declared or () if isinstance(one, NeuronGroup))
        # Rows of a parameter are a cloud by the user's word: there is nothing to prove.
        self._rows = tuple(
            group for one in declared or () if isinstance(one, Rows) for group in one.resolve(training.module)
        )

    @outside_modes()
    def groups(self, tapes: Sequence[Tape], obstacle: str, join: Join | None = None) -> tuple[NeuronGroup, ...]:
        """The groups that these tapes show, the same on every process: a collective.

        `join` says what becomes of those known before, of which otherwise nothing is kept.
        """
        ranks, known = self._training.ranks, None if join is None else self._known
        structure = self._structure()
        found: FoundNeurons = ranks.first("groups", lambda: self._found(tapes, obstacle, structure, known, join))
        self._known, self.coverage, self.drawn = found, found.coverage, found.drawn
        self.problems = list(_problems(found))
        return tuple(group for group in found.groups if group.n > 1)

    @property
    def uncovered(self) -> list[ParameterCoverage]:
        """The trained parameters in no group, largest first."""
        parameters = [(clean_name(name), p) for name, p in self._training.module.named_parameters() if p.requires_grad]
        owned = {id(p) for optimizer in self._training.optimizers for g in optimizer.param_groups for p in g["params"]}
        # Not a target network's; but DeepSpeed's optimizers own flat parts of the module's parameters.
        known = [name for name, p in parameters if id(p) in owned]
        trained = set(known or (name for name, _ in parameters))
        left = [one for one in self.coverage if not one.groups and one.param in trained]
        return sorted(left, key=lambda one: -one.numel)

    @property
    def n_entries(self) -> int:
        """The size of all trainable parameters."""
        return sum(one.numel for one in self.coverage)

    def _structure(self) -> nn.Module | None:
        """A module whose parameters have their whole shapes, on the first rank; a collective where they are flat."""
        if self.sharding not in FLAT:
            return self._training.module
        return whole_copy(self._training.root, mine=self._training.ranks.rank == 0, values=False)

    def _found(
        self,
        tapes: Sequence[Tape],
        obstacle: str,
        structure: nn.Module | None,
        known: FoundNeurons | None,
        join: Join | None,
    ) -> FoundNeurons:
        parameters = {clean_name(name): p for name, p in (structure or self._training.module).named_parameters()}
        with without_collection():
            found = self._present(tapes, obstacle, structure, parameters)
        if known is None or join is None:
            return found
        found = join(known, found)
        return replace(found, coverage=whole_coverage(found.coverage, found.groups, parameters, NOT_MET))

    def _present(
        self, tapes: Sequence[Tape], obstacle: str, structure: nn.Module | None, parameters: Mapping[str, Tensor]
    ) -> FoundNeurons:
        """What these tapes show, and the coverage of all parameters by it."""
        found = self._groups(tapes, obstacle, structure)
        values = {name: value for tape in (() if obstacle else tapes) for name, value in tape.named_values.items()}
        left_out = [group for group in found.groups if self._says_nothing(group, values, parameters)]
        groups = tuple(group for group in found.groups if group not in left_out)
        found = replace(found, groups=groups, coverage=with_reason(found.coverage, left_out))
        measured = [group for group in groups if group.n > 1]
        otherwise = found.refused[0] if found.refused else NOT_MET
        return replace(found, coverage=whole_coverage(found.coverage, measured, parameters, otherwise))

    def _says_nothing(self, group: NeuronGroup, values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> bool:
        """Whether neurons are told apart only by frozen weights that no cloud will hold."""
        if self.sharding != "whole" or not told_apart_by_frozen(group, values):  # what is gathered is whole
            return False
        beside = frozen_beside([group], self._training.module, trained_of(group, parameters))
        return told_apart_by_frozen(group, values, beside.get(group.name, {}))

    def _groups(self, tapes: Sequence[Tape], obstacle: str, structure: nn.Module | None) -> FoundNeurons:
        refused = (obstacle,) if obstacle else tuple(dict.fromkeys(tape.obstacle for tape in tapes if tape.obstacle))
        if not obstacle and len(refused) < len(tapes):
            include = () if self.is_complete else ("*",)
            try:
                found = groups_from_tapes(
                    tapes,
                    module=structure or self._training.module,
                    declared=self._declared,
                    include=include,
                    seed=self._seed,
                )
            except Exception as error:  # whatever fails in here, the training does not
                reason = f"the recorded step could not be followed ({type(error).__name__}: {error})"
                return self._from_structure((reason,), structure)
            return replace(found, groups=(*found.groups, *self._rows))
        return self._from_structure(refused or (_NO_LOSS,), structure)

    def _from_structure(self, refused: tuple[str, ...], structure: nn.Module | None) -> FoundNeurons:
        """The declared groups, and for each layer its incoming weights."""
        reason = f"{refused[0]}: the step was not recorded"
        unproved = (
            replace(group, reason=group.reason or reason) if group.status == "unverified" else group
            for group in self._declared
        )
        groups = (*unproved, *self._rows)
        if not self.is_complete and structure is not None:
            groups += tuple(incoming_groups(structure, reason))
        return FoundNeurons(groups, (), refused, frozenset(group.name for group in groups))


def _problems(found: FoundNeurons) -> list[Problem]:
    """Problems to report: groups that were not found, or not proved."""
    remedy = _PASS_LOSS if _NO_LOSS in found.refused else _REMEDY
    if not any(group.n > 1 for group in found.groups):
        reason = (
            "; ".join(found.refused) or "the module has no group of two or more exchangeable neurons of the usual kinds"
        )
        if not found.refused and (left := [one for one in found.uncovered if one.reason]):
            reason += f" ({left[0].param}, the largest parameter: {left[0].reason})"
        return [Problem(f"No neurons found: {reason}.", remedy=remedy)]
    problems = [
        Problem(f"A loss was not followed: {reason}.", remedy=remedy) for reason in dict.fromkeys(found.refused)
    ]
    incoming = [group for group in found.groups if group.status == "incoming_only"]
    if found.refused and incoming:  # all for the same reason
        return [
            *problems,
            Problem(f"The neurons of {_named(incoming)} are taken from the structure, without what reads them."),
        ]
    if unproved := [group for group in found.groups if group.status == "unverified"]:
        problems.append(Problem(f"The neurons of {_named(unproved)} are not proved: {unproved[0].reason}."))
    return problems + [
        Problem(f"The neurons of {group.name} are taken without what reads them: {group.reason}", group.name)
        for group in incoming
    ]


def _named(groups: Sequence[NeuronGroup]) -> str:
    return ", ".join(group.name for group in groups[:3]) + (", ..." if len(groups) > 3 else "")
