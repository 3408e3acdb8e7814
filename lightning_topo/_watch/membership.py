"""Which parameters are trained, and when that changes: some are thawed, frozen, replaced, renamed or added."""

from dataclasses import dataclass

from torch import nn

from lightning_topo._tape.names import all_names
from lightning_topo._watch.steps import Steps

READ_STEPS = 50
"""The names of the module's parameters are read again every this many steps."""


@dataclass(frozen=True, slots=True)
class Change:
    """Parameters that the optimizers train now or train no longer; `are_new` if some are new to the module.

    `joined` are those of them that are trained now.
    """

    names: frozenset[str]
    joined: frozenset[str]
    are_new: bool


class Membership:
    """Follows the trained parameters of a module from the step in which its neurons were found."""

    def __init__(self, module: nn.Module, steps: Steps) -> None:
        self._steps = steps
        self._members = frozenset(steps.trained())
        self._known = frozenset(name for name, _ in all_names(module.named_parameters))

    def change(self, step: int) -> Change | None:
        """Return what changed since the last call; None where nothing did."""
        if step % READ_STEPS == 0:
            self._steps.read_names()
        names = frozenset(self._steps.trained())
        changed, joined, self._members = names ^ self._members, names - self._members, names
        return Change(changed, joined, not changed <= self._known) if changed else None
