"""The curvature of the training's own batches, over the last few that were looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from torch import Tensor

from lightning_topo.stability import Curvature, ParameterThreshold
from lightning_topo.stability._batch_sharpness import BatchDirections, batch_directions, share

_MEMORY = 12
"""The number of recent batches that decide the edge."""
_ALIKE = 1e-6
"""So much of each other may the factors differ by which several rates have changed."""


@dataclass(frozen=True, slots=True)
class SeenBatch:
    """One batch: its sharpness, the ratios to the plateaus of small and large batches.

    `elsewhere` is how much of its curvature another batch had, at the same parameters.
    """

    value: float
    small: float
    large: float
    elsewhere: float


@dataclass(frozen=True, slots=True)
class BatchWindow:
    """The last batches, oldest first, and how many there have been.

    `rates` are the learning rates of all parameter groups that the batches' ratios hold for, `effects` what else of
    their options is a factor of the two ratios, and `rule` is everything else that the ratios depend on. An update
    takes `together` such batches.

    >>> window = BatchWindow().followed_by([SeenBatch(10.0, 1.0, 0.1, 0.5)])
    >>> round(window.noise, 6), round(window.ratio, 6)
    (0.5, 0.775)
    """

    batches: tuple[SeenBatch, ...] = ()
    count: int = 0
    rates: tuple[float, ...] = ()
    rule: str = ""
    effects: tuple[tuple[float, float], ...] = ()
    together: float = 1

    def under(self, rule: str, effects: Sequence[tuple[float, float]]) -> "BatchWindow":
        """The window under these rules: a momentum that changes changes the ratios; any other change empties it.

        >>> window = BatchWindow(rule="SGD", effects=((10.0, 0.25),)).followed_by([SeenBatch(10.0, 1.0, 0.1, 0.5)])
        >>> [(round(each.small, 6), round(each.large, 6)) for each in window.under("SGD", [(1.0, 0.5)]).batches]
        [(0.1, 0.2)]
        >>> window.under("Adam", [(1.0, 0.5)]).batches
        ()
        """
        new = replace(self, rule=rule, effects=tuple(effects))
        if (self.rule, self.effects) == (new.rule, new.effects) or not self.rule:
            return new
        small, large = (_common_factor(*pair) for pair in zip(_columns(self.effects), _columns(effects), strict=True))
        if self.rule != rule or small is None or large is None:
            return replace(new, batches=())
        batches = [replace(each, small=small * each.small, large=large * each.large) for each in self.batches]
        return replace(new, batches=tuple(batches))

    def at(self, rates: Sequence[float]) -> "BatchWindow":
        """The window at these learning rates: a ratio is proportional to them, if all have changed by one factor.

        Otherwise earlier batches keep the ratios that they had. At rates of 0 nothing moves, and the window stays as it
        is.

        >>> window = BatchWindow(rates=(0.1,)).followed_by([SeenBatch(10.0, 1.0, 0.1, 0.5)])
        >>> round(window.ratio, 6), round(window.at([0.01]).ratio, 6)
        (0.775, 0.0775)
        """
        if rates and not any(rates):
            return self
        factor = _common_factor(self.rates, rates)
        if factor is None:
            return replace(self, rates=tuple(rates))
        batches = [replace(each, small=factor * each.small, large=factor * each.large) for each in self.batches]
        return replace(self, batches=tuple(batches), rates=tuple(rates))

    def followed_by(self, batches: Sequence[SeenBatch]) -> "BatchWindow":
        """The window with further batches."""
        return replace(self, batches=(*self.batches, *batches)[-_MEMORY:], count=self.count + len(batches))

    @property
    def noise(self) -> float:
        """The share of a batch's curvature that others do not have: 1 - E[v^T H' v / v^T H v], within [0, 1]."""
        return min(max(1.0 - fmean(each.elsewhere for each in self.batches), 0.0), 1.0)

    @property
    def ratio(self) -> float:
        """The ratio of the updates to the edge, as `edge_ratio` defines it."""
        return edge_ratio([(each.small, each.large) for each in self.batches], self.noise, self.together)

    def save(self) -> list[list[float]]:
        """The batches in plain numbers, for a checkpoint."""
        return [[each.value, each.small, each.large, each.elsewhere] for each in self.batches]

    @classmethod
    def load(
        cls,
        saved: Any,
        count: int,
        rates: Sequence[float] = (),
        rule: str = "",
        effects: Sequence[Sequence[float]] = (),
    ) -> "BatchWindow":
        """The window whose batches `save` has written.

        >>> window = BatchWindow().followed_by([SeenBatch(10.0, 1.0, 0.1, 0.5)])
        >>> BatchWindow.load(window.save(), 1) == window
        True
        """
        batches = tuple(SeenBatch(*map(float, one)) for one in saved)[-_MEMORY:]
        pairs = tuple((float(total), float(stability)) for total, stability in effects)
        return cls(batches, count, tuple(map(float, rates)), str(rule), pairs)

    def values(self, batches_per_update: int = 1) -> Mapping[str, float]:
        """As a probe reports them."""
        values = {
            "batch_sharpness": median(each.value for each in self.batches),
            "batch_noise": self.noise,
            "batch_sharpness_ratio": self.ratio,
        }
        return values | ({"batches_per_update": float(batches_per_update)} if batches_per_update > 1 else {})


def edge_ratio(ratios: Sequence[tuple[float, float]], noise: float, together: float = 1) -> float:
    """The median over batches of w small + (1 - w) large, with w = min(1, n (1 + n)) of the noise n.

    Where an update takes the mean over k batches `together`, the part n of their curvature is divided by k: the sum is
    1 - n + n/k of one batch's curvature, and the share of noise in it (n/k) / (1 - n + n/k), in place of n.

    `ratios` are those of each batch to the plateaus of small and of large batches. In one direction w is n, exactly. A
    batch's gradient mixes directions and so shows less of its curvature, the more the less it shares with others: the
    factor 1 + n is a measured value (docs/edge.md).

    >>> round(edge_ratio([(1.0, 0.1)], 0.5), 6), round(edge_ratio([(1.0, 0.1)], 1.0, together=4), 6)
    (0.775, 0.25)
    """
    if together > 1:
        part = 1.0 - noise + noise / together
        return part * edge_ratio(ratios, noise / (together * part))
    weight = min(noise * (1.0 + noise), 1.0)
    return median(weight * small + (1.0 - weight) * large for small, large in ratios)


def _common_factor(before: Sequence[float], after: Sequence[float]) -> float | None:
    """The factor by which all these have changed; None if there is none."""
    factors = [new / old for old, new in zip(before, after, strict=False) if old > 0.0]
    is_known = len(factors) == len(before) == len(after) and len(factors) > 0
    return factors[0] if is_known and max(factors) - min(factors) <= _ALIKE * max(factors) else None


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def see_batches(
    losses: Sequence[Callable[[], Tensor]],
    curvature_of: Callable[[Callable[[], Tensor]], Curvature],
    thresholds_of: Callable[[Curvature], Sequence[ParameterThreshold] | None],
) -> tuple[SeenBatch, ...]:
    """Measure two or more batches by their losses, each with the one before it; empty if there is no threshold.

    Each takes one gradient and two to four Hessian-vector products, three with Adam. A batch with gradient 0 is left
    out.
    """
    curvatures = [curvature_of(loss_fn) for loss_fn in losses]
    directions: list[BatchDirections] = []
    for curvature in curvatures:
        thresholds = thresholds_of(curvature)
        if thresholds is None or len(curvatures) < 2:
            return ()
        directions.append(batch_directions(curvature, thresholds))
    own, elsewhere = [], []
    for k, curvature in enumerate(curvatures):
        following = directions[(k + 1) % len(directions)]
        *along, of_following = curvature.along([*directions[k].vectors, following.step])
        own.append(along)
        elsewhere.append(of_following)
    found: list[SeenBatch] = []
    for k, (one, along) in enumerate(zip(directions, own, strict=True)):
        if not one.vectors[0].any():
            continue
        seen = one.sharpness(along, noise=1.0)
        assert seen.small is not None
        assert seen.large is not None
        found.append(SeenBatch(seen.value, seen.small, seen.large, share(one.along_step(along), elsewhere[k - 1])))
    return tuple(found)
