"""Parts of the network that the recorded step did not use: their neurons can be found once they are trained."""

from collections.abc import Collection

from torch import Tensor, nn

from lightning_topo._tape.names import clean_name

LOOKS_APART = 4
"""After a look, the next one waits until the training is this many times as old: parts may take turns."""


class UnusedParts:
    """Says when parameters that the recorded steps do not use move for the first time, and a look at them is due.

    Their updates are seen by the counters of writes, which cost nothing to read.
    """

    def __init__(self) -> None:
        self._versions: dict[str, tuple[Tensor, int]] = {}
        self._next_look = 0
        self.moved_since: dict[str, int] = {}

    def follow(self, names: Collection[str], module: nn.Module) -> None:
        """Follow these parameters from now on, and no others."""
        every = {clean_name(name): p for name, p in module.named_parameters()} if names else {}
        self._versions = {name: (every[name], every[name]._version) for name in names if name in every}
        self.moved_since = {name: step for name, step in self.moved_since.items() if name in self._versions}

    def looked(self, step: int) -> None:
        """Wait for a while before the next look."""
        self._next_look = LOOKS_APART * step

    def wants_look(self, step: int) -> bool:
        """Whether some of them have moved by now; to be asked in every step."""
        for name, (parameter, version) in self._versions.items():
            if name not in self.moved_since and parameter._version != version:
                self.moved_since[name] = step
        return bool(self.moved_since) and step >= self._next_look
