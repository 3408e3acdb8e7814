"""Finding the neurons of the module that trains, on its own first step as that runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import FoundNeurons, NeuronGroup, groups_from_tapes
from lightning_topo.neurons.capture import sharding
from lightning_topo.tape import StepRecorder, Tape, accepted, compiled_reason
from lightning_topo.watch.training import Training

_REMEDY = "Name the groups by hand: TopologyMonitor(groups=declare_neurons(module, ...))."


@dataclass(frozen=True, slots=True)
class Problem:
    """A group that could not be found or proved, and what would help."""

    message: str
    group: str = GLOBAL
    remedy: str = _REMEDY


class Recording:
    """Records steps as they run, one tape for each loss; a module with compiled parts is never recorded.

    `obstacle` says why nothing can be recorded; empty where it can.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._recorder = StepRecorder()
        self._gradients: list[dict[str, Tensor] | None] = []
        self._without_gradient: frozenset[str] = frozenset()
        self._tapes: list[Tape] = []
        self.obstacle = compiled_reason(training.module) or ""

    def begin(self) -> None:
        """Record the step that begins."""
        self._tapes, self._gradients = [], []
        if not self.obstacle:
            self._recorder.begin(self._training.module)

    def loss(self, loss: Tensor, scale: float) -> None:
        """A loss is about to be differentiated: it ends a tape."""
        if not self._recorder.is_active:
            return
        self._note_gradients()
        parameters = self._training.module.named_parameters()
        self._without_gradient = frozenset(name for name, p in parameters if p.grad is None or not p.grad.any())
        self._gradients.append(None)
        self._recorder.loss(loss, scale=scale)

    def differentiated(self, *, goes_on: bool) -> None:
        """The gradient is there; where the step goes on, so does the recording."""
        if not self._recorder.is_active:
            return
        self._note_gradients()
        if goes_on:
            self._recorder.resume()

    def end(self) -> list[Tape]:
        """The accepted tapes of the step, one for each loss; whatever has happened in it."""
        if self._recorder.is_active:
            tapes = self._recorder.end()
            alone = self._training.ranks.size == 1  # processes average their gradients
            self._tapes = [
                accepted(tape, gradients if alone else None)
                for tape, gradients in zip(tapes, self._gradients, strict=True)
            ]
            self._gradients = []
        return self._tapes

    def so_far(self) -> list[Tape]:
        """The tapes of the step up to now, while it still runs."""
        return [accepted(tape) for tape in self._recorder.so_far()] if self._recorder.is_active else self._tapes

    def _note_gradients(self) -> None:
        """Keep the gradient that the last loss has made, of parameters that had none before."""
        if self._gradients and self._gradients[-1] is None:
            self._gradients[-1] = {
                name: p.grad.detach().clone()
                for name, p in self._training.module.named_parameters()
                if name in self._without_gradient and p.grad is not None
            }


class Finding:
    """The groups of neurons of one training, found on a recorded step.

    `problems` and `uncovered` say what was not found: groups without proof, and trained parameters in no group.
    """

    def __init__(self, training: Training, declared: Sequence[Any] | None, seed: int) -> None:
        self.sharding = sharding(training.root)
        self.problems: list[Problem] = []
        self.uncovered: dict[str, str] = {}
        self._training, self._seed = training, seed
        self._declared, self._is_complete = _resolved(declared, training)

    def groups(self, tapes: Sequence[Tape], obstacle: str) -> tuple[NeuronGroup, ...]:
        """The groups that these tapes show, the same on every process. A collective."""
        found: FoundNeurons = self._training.ranks.first("groups", lambda: self._found(tapes, obstacle))
        self.uncovered = {coverage.param: coverage.reason for coverage in found.uncovered}
        self.problems = list(_problems(found, obstacle))
        return tuple(group for group in found.groups if group.n > 1)

    def _found(self, tapes: Sequence[Tape], obstacle: str) -> FoundNeurons:
        if obstacle or not tapes:
            return FoundNeurons(self._declared, (), (obstacle or "the step had no loss to follow",))
        found = groups_from_tapes(
            tapes,
            module=self._training.module,
            declared=self._declared,
            include=() if self._is_complete else ("*",),
            seed=self._seed,
        )
        return found


def _resolved(declared: Sequence[Any] | None, training: Training) -> tuple[tuple[NeuronGroup, ...], bool]:
    """The groups given by hand, and whether they are all that is wanted."""
    if declared is None:
        return (), False
    groups: list[NeuronGroup] = []
    for one in declared:
        if isinstance(one, NeuronGroup):
            groups.append(one)
    return tuple(groups), not any(isinstance(one, str) for one in declared)


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
