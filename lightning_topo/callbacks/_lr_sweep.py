"""The result of a sweep of the learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class LRSweep:
    """Holds the result of a learning-rate sweep by `TopologyLRFinder`: losses, critical ratios and curvatures.

    Each tuple has one entry per learning rate, in rising order. The critical ratio r of a step is the largest
    |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons. x_i is neuron i before the step, Δ_i its displacement.

    Attributes:
        lrs: The learning rates tried.
        losses: The training loss of each step's batches, before the step.
        critical_ratios: r of the sweep's own step, the largest over all groups of neurons; critical at 1.
        first_step_ratios: r of a first step from the weights and optimizer state before the sweep; critical at 1.
        eta_lambdas: The largest curvature of the loss, times the learning rate and scaled as the optimizer scales the
            gradient. The sufficient condition of arXiv:2510.02670 needs less than 1; this estimate at one point is no
            certificate. NaN where it was not measured.
        sharpness_ratios: The sharpness divided by the optimizer's stability threshold at this learning rate; 1 at the
            edge of stability. NaN where it was not measured.
        diverged: Whether the sweep ended early, because the loss was not finite or rose too far above its minimum.

    >>> r, twice = (0.3, 0.6, 1.2), (0.6, 1.2, 2.4)
    >>> sweep = LRSweep((0.1, 0.2, 0.4), (3.0, 2.0, 1.0), r, r, twice, r)
    >>> sweep.suggestion_by_ratio, sweep.suggestion_by_curvature, sweep.suggestion
    (0.2, 0.1, 0.1)
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    critical_ratios: tuple[float, ...]
    first_step_ratios: tuple[float, ...]
    eta_lambdas: tuple[float, ...]
    sharpness_ratios: tuple[float, ...]
    diverged: bool = False

    @property
    def suggestion_by_ratio(self) -> float | None:
        """The last learning rate of the sweep before the critical ratio r first reaches 1.

        None if r never reached 1 (sweep further up), or reached it at the smallest rate already (start lower). At each
        learning rate the larger of `critical_ratios` and `first_step_ratios` counts. NaN is skipped.
        """
        return _last_below(self.lrs, self._worse_ratios)

    @property
    def suggestion_by_curvature(self) -> float | None:
        """The largest learning rate before `eta_lambda` reaches 1, the limit of the paper's sufficient condition.

        Each value but the first and the last is replaced by the median of itself and its two neighbours: a tiny entry
        of an adaptive preconditioner makes single peaks. Values of at least 1 at the very beginning are skipped: Adam's
        bias correction causes them. None if no value is below 1, if no later value reaches 1, or if `eta_lambda` was
        not measured, as for an optimizer whose update rule is not known.
        """
        return _last_below(self.lrs, _medians(self.eta_lambdas), settles=True)

    @property
    def suggestion(self) -> float | None:
        """The smaller of `suggestion_by_ratio` and `suggestion_by_curvature`.

        If one of these is None, it is the other; None if both are None.
        """
        return min((lr for lr in (self.suggestion_by_ratio, self.suggestion_by_curvature) if lr), default=None)

    @property
    def _worse_ratios(self) -> list[float]:
        """The larger r of each learning rate."""
        return [_worse(*pair) for pair in zip(self.critical_ratios, self.first_step_ratios, strict=True)]

    @property
    def _has_single_peaks(self) -> bool:
        """Whether `eta_lambda` is at least 1 at rates where its median is below."""
        pairs = zip(self.eta_lambdas, _medians(self.eta_lambdas), self.lrs, strict=True)
        last = self.suggestion_by_curvature or math.inf
        return any(value >= 1.0 > smooth and lr <= last for value, smooth, lr in pairs)

    def __str__(self) -> str:
        parts = (
            _in_words("critical ratio r", self.lrs, self._worse_ratios, self.suggestion_by_ratio),
            _in_words("eta_lambda", self.lrs, _medians(self.eta_lambdas), self.suggestion_by_curvature)
            + (", but for single peaks" if self._has_single_peaks else ""),
        )
        end = f" The loss diverged at {self.lrs[-1]:.3g}." if self.diverged else ""
        return f"{len(self.lrs)} learning rates from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}: {'; '.join(parts)}.{end}"

    def plot(self) -> "Figure":
        """Plot `losses`, `critical_ratios`, `first_step_ratios`, `eta_lambdas` and `sharpness_ratios` over `lrs`.

        Returns a matplotlib figure that marks each suggestion that is not None. Raises `ImportError` without
        matplotlib.
        """
        from lightning_topo._figures.lr_sweep import Curve, Mark, lr_figure

        ratios = (
            Curve("r, steps of the sweep", self.critical_ratios),
            Curve("r, first step", self.first_step_ratios),
            Curve("$\\eta\\lambda$", self.eta_lambdas),
            Curve("sharpness ratio", self.sharpness_ratios),
        )
        found = (("by r", self.suggestion_by_ratio), ("by $\\eta\\lambda$", self.suggestion_by_curvature))
        marks = [Mark(f"{how}: {lr:.3g}", lr) for how, lr in found if lr is not None]
        return lr_figure(self.lrs, self.losses, ratios, marks)


def _worse(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)


def _medians(values: Sequence[float]) -> list[float]:
    """The median of each known value and its known neighbours; the first and last values are kept."""
    at = [k for k, value in enumerate(values) if not math.isnan(value)]
    smooth = list(values)
    for before, k, after in zip(at, at[1:], at[2:], strict=False):
        smooth[k] = median((values[before], values[k], values[after]))
    return smooth


def _last_below(lrs: Sequence[float], values: Sequence[float], settles: bool = False) -> float | None:
    """The last learning rate before that at which the value first reaches 1; unknown values are passed over.

    With `settles`, those at the beginning that are at least 1 are passed over as well.
    """
    below = None
    for lr, value in zip(lrs, values, strict=True):
        if value >= 1.0 and not (settles and below is None):
            return below
        if value < 1.0:
            below = lr
    return None


def _in_words(name: str, lrs: Sequence[float], values: Sequence[float], suggestion: float | None) -> str:
    known = [(lr, value) for lr, value in zip(lrs, values, strict=True) if not math.isnan(value)]
    if suggestion is not None:
        return f"{name} stays below 1 up to {suggestion:.3g}"
    if not known:
        return f"{name} is not known"
    most = max(value for _, value in known)
    if most < 1.0:
        return f"{name} stays below 1 everywhere (at most {most:.3g})"
    least = min(value for _, value in known)
    if least >= 1.0:
        return f"{name} is nowhere below 1 (at least {least:.3g})"
    if known[-1][1] < 1.0:
        settled = next(lr for lr, value in known if value < 1.0)
        return f"{name} is at least 1 in the beginning, and below 1 from {settled:.3g} on"
    return f"{name} is at least 1 at the smallest learning rate, {known[0][0]:.3g}"
