"""Whether a batch has led to an update, and what moved otherwise."""

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from lightning_topo._watch.messages import moved_outside, unseen_step
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo.phases import TopologyEvent


class Movements:
    """Tells updates that were seen from those that no hook has seen, and from changes by something else.

    `report` is given one event for each optimizer whose parameters something else moves, and one where updates are
    unseen; `on_outside` is called at each change by something else. `unseen` are the parameters that the last unseen
    update moved.
    """

    def __init__(
        self, training: Training, report: Callable[[TopologyEvent], None], on_outside: Callable[[], None]
    ) -> None:
        self.unseen: Sequence[str] = ()
        self.has_unseen_steps: bool = False
        self._training, self._report, self._on_outside = training, report, on_outside
        self._said_outside: set[int] = set()
        self._sees_updates = False

    def before_batch(self, steps: Steps) -> None:
        """Take what was written between two batches for a change by something else, if updates are seen at all."""
        if self._sees_updates:
            steps.check_written()

    def has_stepped(self, steps: Steps, step: int) -> bool:
        """Whether the present batch has led to an update. A collective where something has moved all the same."""
        training = self._training
        if steps.pending:
            self._sees_updates = True
            return True
        moved = steps.moved()
        if training.ranks.size > 1 and moved:
            # What moves on one process alone is no step: the others would not go through this one's collectives.
            if self._sees_updates:
                self.outside(steps.optimizers[-1], moved)
                return False
            # Only now: before an update the processes may accumulate different numbers of batches.
            every = training.ranks.all("moved", moved)
            moved = moved if all(every) else []
        if moved:
            self.unseen = moved
            if not self.has_unseen_steps and not steps.failures:  # else the update was missed, and not hidden
                self.has_unseen_steps = True
                self._report(unseen_step(training.optimizers, moved, step, training.epoch))
        return bool(moved)

    def outside(self, optimizer: Optimizer, names: Sequence[str]) -> None:
        """Something other than the optimizer has moved its parameters."""
        if names:
            self._moved(optimizer, names, self._training.step)

    def overwritten(self, optimizer: Optimizer, names: Sequence[str], is_lost: bool) -> None:
        """Something has done so before the batch of its update was over; `is_lost` if that can not be measured now."""
        self._moved(optimizer, names, self._training.step + 1, is_lost=is_lost)

    def _moved(self, optimizer: Optimizer, names: Sequence[str], step: int, *, is_lost: bool = False) -> None:
        self._on_outside()
        if id(optimizer) not in self._said_outside:
            self._said_outside.add(id(optimizer))
            self._report(moved_outside(optimizer, names, step, self._training.epoch, is_lost=is_lost))
