"""How old the samples are on which the training's loss is evaluated, where later recordings were refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_topo._tape import Tape

_Loss = tuple[frozenset[str] | None, int]


@dataclass(frozen=True, slots=True)
class Stale:
    """A loss that was recorded again at `refused_at`, which failed for `reason`: it has samples of `step` at best."""

    step: int
    refused_at: int
    reason: str


@dataclass(slots=True)
class SampleAge:
    """Follows for each loss of a step when it was last accepted, and whether it was refused since."""

    _accepted_at: dict[_Loss, int] = field(default_factory=dict)
    _stale: dict[_Loss, Stale] = field(default_factory=dict)
    _told: set[_Loss] = field(default_factory=set)

    def take_news(self) -> tuple[Stale | None, bool]:
        """The newly stale loss with the oldest samples, if any; whether all losses that were stale are renewed.

        Each loss counts as new only until the next call, and again once it has been accepted.
        """
        new = [stale for loss, stale in self._stale.items() if loss not in self._told]
        is_over = bool(self._told) and not self._stale
        self._told = set(self._stale)
        return min(new, key=lambda stale: stale.step, default=None), is_over

    def note(self, step: int, accepted: Sequence[Tape], refused: Sequence[Tape]) -> None:
        """Take in the tapes of another step. A loss that is not known again counts as all, if it is the only one."""
        for tape in accepted:
            self._accepted_at[_loss(tape)] = step
            self._stale.pop(_loss(tape), None)
        for tape in refused:
            known = _loss(tape) in self._accepted_at
            for loss in [_loss(tape)] if known else [] if accepted else list(self._accepted_at):
                reason = tape.obstacle or tape.gradient_obstacle
                self._stale.setdefault(loss, Stale(self._accepted_at[loss], step, reason))

    def forget_all_but(self, tapes: Sequence[Tape]) -> None:
        """Forget losses without samples."""
        held = {_loss(tape) for tape in tapes}
        for loss in self._accepted_at.keys() - held:
            del self._accepted_at[loss]
            self._stale.pop(loss, None)


def _loss(tape: Tape) -> _Loss:
    return tape.owners, tape.place
