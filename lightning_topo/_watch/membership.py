"""Which parameters are trained, and when that changes: some are thawed, frozen, replaced, renamed or added."""

from dataclasses import dataclass

from torch import nn

from lightning_topo._tape.names import all_names
from lightning_topo._watch.parameter_names import Form, form
from lightning_topo._watch.steps import Steps

READ_STEPS = 50
"""The names of the module's parameters are read again every this many steps."""


@dataclass(frozen=True, slots=True)
class Change:
    """Parameters that optimizers train now (`joined`), train no longer (`left`), or whose shape or dtype `changed`.

    `replaced` are those of the same form that are others now. `are_new` if some are new to the module. `gone` are
    frozen parts of watched neurons that have another name, shape or dtype now, or none.
    """

    joined: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    are_new: bool = False
    replaced: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return self.joined | self.left | self.changed | self.replaced | self.gone


class Membership:
    """Follows the trained parameters of a module from the step in which its neurons were found."""

    def __init__(self, module: nn.Module, steps: Steps) -> None:
        self._steps = steps
        self._members, self._ids, self._generation = _forms(steps), steps.ids(), steps.generation
        self._known = frozenset(name for name, _ in all_names(module.named_parameters))

    def change(self, step: int) -> Change | None:
        """Return what changed since the last call; None where nothing did."""
        if step % READ_STEPS == 0:
            self._steps.read_names()
        if self._steps.generation == self._generation and self._steps.trained().keys() == self._members.keys():
            return None  # one of another form is another generation
        before, now, replaced = self._members, _forms(self._steps), frozenset[str]()
        if self._steps.generation != self._generation:
            known, self._ids, self._generation = self._ids, self._steps.ids(), self._steps.generation
            same = (name for name in now.keys() & before.keys() if now[name] == before[name])
            replaced = frozenset(name for name in same if known.get(name) != self._ids.get(name))
        if before == now and not replaced:
            return None
        self._members = now
        joined, left = frozenset(now.keys() - before.keys()), frozenset(before.keys() - now.keys())
        changed = frozenset(name for name in now.keys() & before.keys() if now[name] != before[name])
        are_new = bool(changed or replaced) or not joined | left <= self._known
        return Change(joined, left, changed, are_new, replaced)


def _forms(steps: Steps) -> dict[str, Form]:
    return {name: form(tensor) for name, tensor in steps.trained().items()}
