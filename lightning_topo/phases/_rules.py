"""The thresholds between phases, with their hysteresis."""

import math
from dataclasses import dataclass, field

from lightning_topo._keywords import explains_keywords


@dataclass(frozen=True)  # no slots: jsonargparse reads a default by its `__dict__`
class Band:
    """A threshold with hysteresis, for noisy values: enter and leave by medians, at two levels.

    Inside from the step where the median of the last `enter_window` values is at least `enter`, until the median
    of the last `leave_window` values is below `leave`.

    Raises `ValueError` unless `leave < enter` and both windows are positive.
    """

    enter: float
    leave: float
    enter_window: int = 3
    leave_window: int = 5

    def __post_init__(self) -> None:
        if not self.leave < self.enter:
            raise ValueError(f"expected leave < enter, got leave={self.leave} and enter={self.enter}")
        if min(self.enter_window, self.leave_window) < 1:
            raise ValueError(f"expected windows of at least 1 value, got {self.enter_window} and {self.leave_window}")

    @property
    def memory(self) -> int:
        """How many recent values the band looks at."""
        return max(self.enter_window, self.leave_window)


_COUNTS = (
    "hold_steps",
    "instability_confirm",
    "instability_age",
    "instability_hold",
    "loss_window",
    "loss_memory",
    "betti_confirm",
    "fate_confirm",
    "merge_confirm",
)


@explains_keywords
@dataclass(frozen=True)
class PhaseRules:
    """When one phase ends and another begins.

    Each event has its own thresholds:

    - `critical_ratio`: a group breaks down at a step with r of at least this.
    - `hold_steps`: a breakdown is over after this many measured or bounded steps with r < `critical_ratio`. A split of
      equal neurons is an event again after this many measurements without one.
    - `curvature`: the band of `eta_lambda`.
    - `edge`: training is at the edge of stability while the sharpness over the optimizer's threshold is in this band.
    - `batch_edge`: the same for the curvature of the training's own batches.
    - `directional_edge`, `critical_edge`: the same for the ratios of single steps, which are noisier.
    - `loss_window`, `loss_memory`: an `instability` is a loss that is not finite, or `loss_window` losses in a row that
      are far above the first loss and the `loss_memory` losses before them.
    - `instability_ratio`, `instability_confirm`, `instability_age`: less of a rise is an `instability` too, if the last
      `instability_confirm` edge ratios exceed `instability_ratio` and are at most `instability_age` steps old. Then
      `loss_window` losses in a row above the 0.9 quantile of those before are enough.
    - `instability_hold`: an `instability` is over after this many calm losses in a row.
    - `betti_confirm`, `betti_share`: a Betti number has changed when this many captures in a row differ from it on the
      same side, by `betti_share` of it and at least by one.
    - `fate_confirm`, `fate_share`: neurons are vanishing (or condensing) when this many captures in a row have more
      neurons near 0 (or fewer directions) than last reported, by `fate_share` of the neurons and at least one. A single
      capture is enough for three times that share, if that is more than three neurons.
    - `merge_confirm`: after neurons have parted, they must stay apart for this many measurements before their next
      merger is an event.
    - `diagram_jump`: the log-bottleneck distance between two captures that makes an event; log 2 is a feature twice as
      long.

    Raises `ValueError` for a count below 1, or a threshold that makes no sense.
    """

    critical_ratio: float = 1.0
    hold_steps: int = 100
    curvature: Band = field(default_factory=lambda: Band(enter=1.0, leave=0.8))
    edge: Band = field(default_factory=lambda: Band(enter=0.95, leave=0.70))
    batch_edge: Band = field(default_factory=lambda: Band(enter=0.80, leave=0.50))
    directional_edge: Band = field(default_factory=lambda: Band(enter=0.90, leave=0.60, enter_window=5, leave_window=9))
    critical_edge: Band = field(default_factory=lambda: Band(enter=0.85, leave=0.55, enter_window=5, leave_window=9))
    instability_ratio: float = 1.5
    instability_confirm: int = 2
    instability_age: int = 50
    instability_hold: int = 5
    loss_window: int = 5
    loss_memory: int = 50
    betti_confirm: int = 2
    betti_share: float = 0.05
    fate_confirm: int = 2
    fate_share: float = 0.03
    merge_confirm: int = 5
    diagram_jump: float = math.log(2.0)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 0.0 < self.critical_ratio < math.inf:
            raise ValueError(f"expected a finite critical_ratio > 0, got {self.critical_ratio}")
        if not self.instability_ratio > 1.0:
            raise ValueError(f"expected instability_ratio > 1, got {self.instability_ratio}")
        for name in ("betti_share", "fate_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"expected 0 <= {name} < 1, got {getattr(self, name)}")
        if not self.diagram_jump > 0.0:
            raise ValueError(f"expected diagram_jump > 0, got {self.diagram_jump}")
