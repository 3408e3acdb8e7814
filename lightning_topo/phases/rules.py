"""The thresholds between phases, with their hysteresis."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Band:
    """A threshold that is noisy to sit on: enter and leave by medians, at two different levels.

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


@dataclass(frozen=True, slots=True)
class PhaseRules:
    """When one phase ends and another begins.

    `hold_steps` is how many measured steps of a group must have r < `critical_ratio` before its breakdown is over.
    """

    critical_ratio: float = 1.0
    hold_steps: int = 100
    curvature: Band = field(default_factory=lambda: Band(enter=1.0, leave=0.8))
    edge: Band = field(default_factory=lambda: Band(enter=0.95, leave=0.70))

    def __post_init__(self) -> None:
        if self.hold_steps < 1:
            raise ValueError(f"expected hold_steps >= 1, got {self.hold_steps}")
