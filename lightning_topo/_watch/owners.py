"""Which parameters the updates behind each loss of a step move: a GAN's losses are of one network each."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from lightning_topo._tape import Tape


class Owners:
    """Follows each loss of one step through the gradients it has changed into the updates that have taken these.

    A loss owns the parameters that an update has moved by a gradient with a part of it. What it leaves in a gradient
    that no later update of the step takes, and that is still there at the end, waits for the next step's: so
    gradients are accumulated over batches.
    """

    def __init__(self) -> None:
        self._owned: list[set[str]] = []
        self._waiting: defaultdict[str, set[int]] = defaultdict(set)  # by parameter, the losses in its gradient
        self._n_moves: Counter[str] = Counter()
        self._moves_before: list[Counter[str]] = []
        self._seen: dict[str, tuple[int, int] | None] = {}
        self._n_taken = 0  # losses behind which an update has come

    def before_loss(self, parameters: Mapping[str, Tensor], without_gradient: Iterable[str]) -> None:
        """Another loss is about to be differentiated; these parameters have no gradient, or have it cleared."""
        for name in without_gradient:
            self._waiting.pop(name, None)
        self._seen = {name: _state(p) for name, p in parameters.items()}
        self._owned.append(set())
        self._moves_before.append(self._n_moves.copy())

    def after_loss(self, parameters: Mapping[str, Tensor]) -> None:
        """Its gradient is there."""
        for name, p in parameters.items():
            if p.grad is not None and _state(p) != self._seen.get(name):
                self._waiting[name].add(len(self._owned) - 1)

    def moved(self, names: Iterable[str]) -> None:
        """An update has moved these parameters."""
        self._n_taken = len(self._owned)
        for name in names:
            self._n_moves[name] += 1
            for k in self._waiting.get(name, ()):
                self._owned[k].add(name)

    def noted(self, tapes: Sequence[Tape], parameters: Mapping[str, Tensor]) -> list[Tape]:
        """The tapes of these losses with what they own, and the place of each among those of one update.

        As they are where nobody has seen an update, and no gradient is left that tells.
        """
        for name, losses in self._waiting.items():
            grad = parameters[name].grad if name in parameters else None
            if grad is not None and any(k >= self._n_taken for k in losses) and bool(grad.any()):
                for k in losses:
                    if k >= self._n_taken:
                        self._owned[k].add(name)
        if not self._n_moves and not any(self._owned):
            return list(tapes)
        found: list[Tape] = []
        met: Counter[tuple[frozenset[str], tuple[int, ...]]] = Counter()
        for tape, owned, moves in zip(tapes, self._owned, self._moves_before, strict=True):
            update = frozenset(owned), tuple(moves[name] for name in sorted(owned))
            found.append(tape.replaced(owners=update[0], place=met[update]))
            met[update] += 1
        return found


def _state(parameter: Tensor) -> tuple[int, int] | None:
    """What changes of a gradient when something is added to it."""
    grad = parameter.grad
    return None if grad is None else (id(grad), grad._version)
