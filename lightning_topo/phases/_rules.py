"""The thresholds between phases, with their hysteresis."""

import math
from dataclasses import dataclass, field

from lightning_topo._keywords import explains_keywords


@dataclass(frozen=True)  # no slots: jsonargparse reads a default by its `__dict__`
class Band:
    """A threshold with hysteresis: a noisy value enters at one level and leaves at a lower one, both by a median.

    The value is inside from the step at which the median of its last `enter_window` values is at least `enter`, until
    the median of its last `leave_window` values is below `leave`.

    Raises `ValueError` unless `leave < enter` and both windows are at least 1.
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
        """The number of recent values that the medians need: the larger of the two windows."""
        return max(self.enter_window, self.leave_window)


_COUNTS = (
    "hold_steps",
    "instability_confirm",
    "instability_age",
    "instability_hold",
    "loss_window",
    "loss_memory",
    "loss_rises",
    "edge_rises",
    "betti_confirm",
    "fate_confirm",
    "merge_confirm",
)


@explains_keywords
@dataclass(frozen=True)
class PhaseRules:
    """The thresholds at which one phase ends and another begins, and at which events are reported.

    A step moves neuron i from x_i to x_i + Δ_i; its critical ratio is r = max |Δ_i - Δ_j| / |x_i - x_j| over pairs of
    neurons.

    - `critical_ratio`: a group breaks down at a measured step with r of at least this.
    - `hold_steps`: a breakdown ends after this many steps, none of them measured with r of at least `critical_ratio`.
      A step counts if r was measured or its bound is below 1. Once equal neurons have parted in a group, a further
      split is an event only after this many measurements of the group without a split.

    Bands (see `Band`) in which training counts as unprotected or at the edge of stability:

    - `curvature`: unprotected while `eta_lambda`, the learning rate times the largest curvature, is in this band.
    - `edge`: at the edge while `sharpness_ratio`, the sharpness divided by the optimizer's threshold, is in this band.
      It does not count while `batch_sharpness_ratio` is measured.
    - `batch_edge`: at the edge while `batch_sharpness_ratio`, the curvature of single batches divided by its value at
      the edge, is in this band.
    - `directional_edge`, `critical_edge`: at the edge while `directional_ratio` or `critical_sharpness` is in its band.
      They count only if neither `sharpness_ratio` nor `batch_sharpness_ratio` is measured. As values of single steps
      are noisier, `enter_window` is 5 and `leave_window` 9 in these two bands, not 3 and 5.

    An `instability` is a loss that is not finite, a high loss beyond the edge, or a climb. Let m be the median, and q10
    and q90 the 10 % and 90 % quantiles, of `loss_memory` losses, and let "far above L" mean above
    L + max(2 |L|, 5 (q90 - q10)). The loss is at a level if the last `loss_window` losses are all above it. The edge
    ratio is that of the source that decides (see `edge` and `batch_edge`).

    - `instability_ratio`, `instability_confirm`, `instability_age`: beyond the edge the last `instability_confirm` edge
      ratios are all above `instability_ratio`, and the newest is at most `instability_age` steps old. The loss is high
      if it is above q90 + (q90 - q10) of the losses before the last `loss_window`, or far above m of the losses before
      the last edge ratio that was not above `instability_ratio`.
    - `loss_window`, `loss_memory`: the loss rises when it is far above the first loss and everything at which it was in
      the first 2 `loss_window` losses, and again when it is far above the last rise. Rises are at least `loss_window`
      losses apart. If a group has broken down, or the newest edge ratio is above `instability_ratio` and fresh, one
      rise is an instability.
    - `edge_rises`: at the edge of stability, this many rises in a row are an instability, if the last took at most 1.25
      times as long as each before it.
    - `loss_rises`: so are this many rises elsewhere, if besides none took more than `loss_memory` losses.
    - `instability_hold`: an instability ends after this many finite losses in a row, if after none of them the last
      `loss_window` losses are all above q90.

    Counts must change clearly to cause an event. A capture is one measurement by `Persistence` or `Fate`:

    - `betti_confirm`, `betti_share`: `betti_changed` needs `betti_confirm` captures in a row, all above or all below
      the number b last reported, and each away from it by at least max(1, `betti_share` * b).
    - `fate_confirm`, `fate_share`: `neurons_vanishing` needs `fate_confirm` captures in a row with at least k more
      neurons near 0 than last reported, and `neurons_condensing` as many captures with at least k fewer directions.
      Here k = max(1, `fate_share` * number of neurons). If k > 1, one capture with a change of at least 3 k is enough.
    - `merge_confirm`: `neurons_merged` is reported when `distinct_neurons` falls below its lowest value so far. That
      lowest value rises again when the last `merge_confirm` measurements all lie above it.
    - `diagram_jump`: a log-bottleneck distance above this between two captures is an event. The default log 2 means
      that a birth or death changed by a factor of 2.

    Raises `ValueError` for a count below 1, or a threshold out of its range.
    """

    critical_ratio: float = 1.0
    hold_steps: int = 100
    curvature: Band = field(default_factory=lambda: Band(enter=1.0, leave=0.8))
    edge: Band = field(default_factory=lambda: Band(enter=0.98, leave=0.70))
    batch_edge: Band = field(default_factory=lambda: Band(enter=0.92, leave=0.50))
    directional_edge: Band = field(default_factory=lambda: Band(enter=0.95, leave=0.60, enter_window=5, leave_window=9))
    critical_edge: Band = field(default_factory=lambda: Band(enter=0.95, leave=0.55, enter_window=5, leave_window=9))
    instability_ratio: float = 1.5
    instability_confirm: int = 2
    instability_age: int = 50
    instability_hold: int = 5
    loss_window: int = 5
    loss_memory: int = 50
    loss_rises: int = 4
    edge_rises: int = 3
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
