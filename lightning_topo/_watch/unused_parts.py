"""Parts of the network that the recorded step did not use: their neurons can be found once they are trained."""

from collections.abc import Collection

from torch import Tensor, nn

from lightning_topo._tape.names import clean_name
from lightning_topo._watch.steps import Steps

LOOKS_APART = 2
"""After a look, the next one waits until the training is this many times as old: parts may take turns."""


class UnusedParts:
    """Sees when parameters move that no recorded step has used, and says when a look at them is due.

    `moved_since` holds the step in which each has moved first, and `is_moving` says whether one did in the last step.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._parameters: dict[str, Tensor] = {}
        self._next_look = 0
        self.moved_since: dict[str, int] = {}
        self.is_moving: bool = False

    def follow(self, names: Collection[str], module: nn.Module) -> None:
        """Follow these parameters from now on, and no others."""
        every = {clean_name(name): p for name, p in module.named_parameters()} if names else {}
        self._parameters = {name: every[name] for name in names if name in every}
        self.moved_since = {name: step for name, step in self.moved_since.items() if name in self._parameters}
        self.is_moving = False

    def see(self, step: int) -> None:
        """Note which of them this step has moved; to be called in every step, before its copies are renewed."""
        moving = self._steps.moving(self._parameters)
        self.is_moving = bool(moving)
        for name in moving:
            self.moved_since.setdefault(name, step)

    def looked(self, step: int) -> None:
        """Wait for a while before the next look."""
        self._next_look = LOOKS_APART * step

    def wants_look(self, step: int) -> bool:
        """Whether some of them have moved by now, and it is time."""
        return bool(self.moved_since) and step >= self._next_look
