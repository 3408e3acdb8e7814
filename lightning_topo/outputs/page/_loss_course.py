"""How the loss of a run went: whether it has fallen, and whether what it had gained was lost again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lightning_topo.measurement import GLOBAL, Measurement

_BLOWN_UP = 1.5
"""From where the loss is so many times its first value on, what is measured is a consequence, not a cause."""
_FEW = 40
"""Of fewer steps nobody can say whether the loss has fallen."""
_ENOUGH = 100
"""After so many steps a loss that has hardly fallen is a finding."""
_HARDLY = 0.05
"""A loss that is lower by less than this share has hardly fallen."""
_ROSE = 1.05
"""A loss whose level was so many times its first value has risen."""
_NOISE = 0.01
"""A loss that has changed by less than this share has not fallen."""
_FELL = 0.3
"""A loss that was lower by this share than at first had fallen beyond doubt."""
_STRAY = 0.05
"""At most this share of the losses may be not finite, for these batches alone to be to blame."""
_WINDOW = 20
"""The level of the loss is the mean of so many."""


@dataclass(frozen=True, slots=True)
class Level:
    """The mean of the losses of the steps up to one."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class LossCourse:
    """The losses of a run by step, and what they came to.

    >>> course = LossCourse({step: 1.0 if step in (1, 2) or step > 60 else 0.25 for step in range(1, 101)})
    >>> course.first, course.last, course.has_fallen, course.lost
    (1.0, 1.0, False, Level(step=22, loss=0.25))
    """

    losses: Mapping[int, float]

    @staticmethod
    def of(measurements: Sequence[Measurement]) -> "LossCourse":
        """From a record's measurements."""
        return LossCourse({m.step: m.values["loss"] for m in measurements if m.group == GLOBAL and "loss" in m.values})

    @property
    def first(self) -> float | None:
        """The loss of the first step; the second may be the learning rate's doing."""
        return self.losses[min(self.losses)] if self.losses else None

    @property
    def last(self) -> float | None:
        """The mean of the last losses; not finite where one of them is not."""
        known = [self.losses[step] for step in sorted(self.losses)[-_WINDOW:]]
        return sum(known) / len(known) if known else None

    @property
    def finite(self) -> "LossCourse":
        """The losses that are finite."""
        return LossCourse({step: loss for step, loss in self.losses.items() if math.isfinite(loss)})

    @property
    def has_recovered(self) -> bool:
        """Whether a few losses were not finite, and those after them stand no higher than those before.

        >>> LossCourse({step: 1.0 if step != 30 else math.nan for step in range(1, 61)}).has_recovered
        True
        """
        bad = sorted(step for step, loss in self.losses.items() if not math.isfinite(loss))
        if not bad or len(bad) > _STRAY * len(self.losses):
            return False
        before = [self.losses[step] for step in sorted(self.losses) if step < bad[0]][-_WINDOW:]
        after = [self.losses[step] for step in sorted(self.losses) if step > bad[-1]][-_WINDOW:]
        return bool(before and after) and sum(after) / len(after) <= max(before)

    @property
    def has_fallen(self) -> bool:
        """Whether the loss is lower at the end, as far as anything is known of it."""
        first, last = self.first, self.last
        return first is None or last is None or len(self.losses) < _FEW or last < first - _NOISE * abs(first)

    @property
    def has_stalled(self) -> bool:
        """Whether the loss is hardly lower after steps enough to expect it."""
        first, last = self.first, self.last
        if first is None or last is None or len(self.losses) < _ENOUGH:
            return False
        return not last < first - _HARDLY * abs(first)

    @property
    def has_risen(self) -> bool:
        """Whether the loss stood above its first value for a while: a peak, or for good and far above."""
        first, last, levels = self.first, self.last, [level for level in self._levels if math.isfinite(level)]
        if first is None or last is None or not levels:
            return False
        rose, is_peak = (max(levels) > base + (_ROSE - 1.0) * abs(base) for base in (first, last))
        return (rose and is_peak) or last > _BLOWN_UP * abs(first)

    @property
    def _levels(self) -> list[float]:
        """The means of the finite ones of each so many losses in a row; not a number where none is finite."""
        losses = [self.losses[step] for step in sorted(self.losses)]
        sums = list(accumulate((loss if math.isfinite(loss) else 0.0 for loss in losses), initial=0.0))
        counts = list(accumulate((math.isfinite(loss) for loss in losses), initial=0))
        spans = [(k, k + _WINDOW) for k in range(len(losses) - _WINDOW + 1)]
        return [(sums[j] - sums[i]) / (counts[j] - counts[i]) if counts[j] > counts[i] else math.nan for i, j in spans]

    @property
    def lost(self) -> Level | None:
        """Where the loss was lowest, if it had fallen beyond doubt and is no better now than at first; else None."""
        first, steps = self.first, sorted(self.losses)
        if first is None or self.has_fallen:
            return None
        means = self._levels
        lowest = min(range(len(means)), key=means.__getitem__)
        if not means[lowest] < first - _FELL * abs(first):
            return None
        return Level(steps[lowest + _WINDOW - 1], means[lowest])

    @property
    def sound_until(self) -> float:
        """The step at which the loss has blown up, infinite where it never has."""
        first = self.first
        high = math.inf if first is None or first <= 0.0 else _BLOWN_UP * first
        return min((step for step, loss in self.losses.items() if not loss <= high), default=math.inf)

    def level(self, step: int) -> float | None:
        """The mean of the finite losses of the steps up to one."""
        near = [loss for s, loss in self.losses.items() if step - _WINDOW < s <= step and math.isfinite(loss)]
        return sum(near) / len(near) if near else None
