"""The edge of stability as the training's own batches and steps show it: cheap, and often."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from lightning_topo._keywords import explains_keywords
from lightning_topo._tape import TapeLoss
from lightning_topo.measurement import GLOBAL
from lightning_topo.probes._approach import Approach, adapted
from lightning_topo.probes._batch_loss import BatchLoss
from lightning_topo.probes._batch_window import BatchWindow, see_batches
from lightning_topo.probes._critical_sharpness import critical_values, step_segment
from lightning_topo.probes._directional import directional_values
from lightning_topo.probes._period import Period
from lightning_topo.probes._probe import Capture, LossFn, ProbeResult, ProbeUnavailable, refuse_complex
from lightning_topo.stability import Curvature, ParameterThreshold, awaits_first_step, parameter_thresholds
from lightning_topo.stability._effects import rule_and_effects

_BATCHES = 2
"""So many recorded batches are looked at in one measurement."""
_LARGE = 256
"""Updates of so many samples have next to no noise: `Sharpness` sees their edge."""
_UNKNOWN = (
    "There is no batch_sharpness_ratio: how many batches an update takes together is not known. Several losses of one "
    "batch went into it, or optimizers that take different numbers, or no gradient could be seen."
)
_WITHOUT_GRADIENT = "There is no batch_sharpness_ratio at this step: the gradient of the recorded batches is 0."


@explains_keywords
@dataclass(frozen=True, slots=True)
class StepEdge:
    """Measures how close training is to the edge of stability on single batches and steps; complements `Sharpness`.

    If the optimizer's stability threshold is known, each measurement adds two recorded batches to a window of twelve.
    If all learning rates have changed by one factor, so do the ratios of the batches in it. Values of the whole
    network, from the batches in the window:

    - `batch_sharpness`: the median of g^T H g / g^T g, with g the gradient and H the Hessian of a batch;
    - `batch_noise`: the share of a batch's curvature that other batches do not have, from 0 to 1;
    - `batch_sharpness_ratio`: the curvature divided by its value at the edge of stability, for updates of this size;
    - `batches_per_update`, if more than 1: the batches that an update takes together, accumulated and on all processes.

    Where an update takes several batches, as many recorded ones count as one. As long as too few are recorded, fewer
    do, and the noise is divided by the number of such parts.

    With 256 samples or more in an update these are not measured: its edge is that of `Sharpness`.

    If no threshold is known (Muon, Lion, an optimizer of your own), the probe records the step that it measures. Values
    of the whole network, on the batch of this step:

    - `directional_ratio`: Delta^T H Delta / (-2 g^T Delta), with Delta the step; 1 at the edge of stability;
    - `critical_sharpness`: 1 / s, with s the multiple of the step at which the loss is back at its value before the
      step; 1 at the edge. `critical_converged` and `n_forwards` are explained in `StepSharpness`;
    - `critical_noise`: half the difference between `critical_sharpness` on this batch and on another one.

    If parameters are sharded: `critical_sharpness` alone, of the step just taken. Nothing is measured if no training
    step can be recorded; `Sharpness` or, if parameters are sharded, this probe reports why.

    Args:
        every_n_steps: The period; "auto" begins with every 25th step.
        loss_fn: `loss_fn(module, batch)` replaces the recorded loss. Two batches are then that of the step and that of
            the measurement before, which is kept.
        batches: Whether to measure the three values of batches; False leaves them to `Sharpness(batch_sharpness=...)`.

    Source: Andreyev and Beneventano, arXiv:2412.20553; arXiv:2604.14108 (momentum); arXiv:2601.16979 (critical
    sharpness).

    >>> StepEdge(every_n_steps=10).period
    Period(every=10, unit='step', adaptive=False)
    """

    every_n_steps: int | Literal["auto"] = "auto"
    loss_fn: LossFn | None = None
    batches: bool = True
    name: str = field(default="step_edge", init=False, repr=False)
    needs_parameters_before: ClassVar[bool] = True
    needs_gradient_scales: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    expected_cost: ClassVar[float] = 12.0

    def __post_init__(self) -> None:
        _ = self.period

    @property
    def period(self) -> Period:
        """How often the probe measures, from `every_n_steps`; "auto" begins with every 25th step."""
        return Period.parse(self.every_n_steps, default=25)

    def save_carry(self, carry: Any) -> dict[str, Any]:
        """Return the last batches, and where the search begins, in plain numbers for a checkpoint."""
        window = carry.window
        return {
            "window": window.save(),
            "count": window.count,
            "rates": list(window.rates),
            "rule": window.rule,
            "effects": [list(pair) for pair in window.effects],
            "start": carry.start,
            "is_recorded": carry.is_recorded,
        }

    def load_carry(self, saved: Mapping[str, Any]) -> "_State":
        """Return the carry that `save_carry` has saved; raise `KeyError`, `TypeError` or `ValueError` if damaged."""
        start = float(saved["start"])
        if not 0.0 < start < math.inf:
            raise ValueError(f"expected a positive start, got {start}")
        changing = (saved.get("rates", ()), saved.get("rule", ""), saved.get("effects", ()))
        window = BatchWindow.load(saved["window"], int(saved["count"]), *changing)
        return _State(window=window, start=start, is_recorded=bool(saved.get("is_recorded")))

    def measure(self, capture: Capture) -> ProbeResult:
        """Measure recorded batches or, if the optimizer's stability threshold is not known, the last step.

        Raises `ProbeUnavailable` if parameters are complex; or sharded, no `loss_fn` is given and the training step
        cannot be recorded or replayed.
        """
        refuse_complex(capture)
        state = _State() if capture.previous is None else capture.previous.carry
        if capture.sharding != "whole":
            return self._in_shards(capture, state)
        try:
            with capture.training_loss(self.loss_fn) as loss_fn:
                return self._measure(capture, loss_fn, state)
        except ProbeUnavailable:
            return ProbeResult(carry=state)

    def _measure(self, capture: Capture, loss_fn: Callable[[], Tensor], state: "_State") -> ProbeResult:
        params = [p for p in capture.module.parameters() if p.requires_grad]

        def thresholds_of(curvature: Curvature | None = None) -> Sequence[ParameterThreshold] | None:
            gradient = None if curvature is None else curvature.gradient
            scales = capture.gradient_scales
            return parameter_thresholds(capture.optimizers, params, gradient, gradient_scales=scales).parameters

        if thresholds_of() is not None:
            if not self.batches:
                return ProbeResult(carry=state)
            return self._of_batches(capture, loss_fn, state, params, thresholds_of)
        if awaits_first_step(capture.optimizers):
            return ProbeResult(carry=state)
        if not state.is_recorded:
            return _after_another_step(state)
        approach, values, start = self._of_step(capture, loss_fn, state)
        state = replace(state, approach=approach, start=start)
        return ProbeResult({GLOBAL: values} if values else {}, carry=state, wants_own_step=True)

    def _of_batches(
        self,
        capture: Capture,
        loss_fn: Callable[[], Tensor],
        state: "_State",
        params: Sequence[Tensor],
        thresholds_of: Callable[[Curvature], Sequence[ParameterThreshold] | None],
    ) -> ProbeResult:
        """The ratio of the last batches to the edge, with two more of them."""
        n = capture.batches_per_update
        if n is None:
            return replace(_after_another_step(state), notes=(_UNKNOWN,))
        size = _size(loss_fn, n)
        losses = _chosen(loss_fn, state, size)
        if isinstance(loss_fn, BatchLoss):
            state = replace(state, batch=loss_fn.batch)
        together = n / size
        is_large = bool(losses) and losses[-1].n_samples * together >= _LARGE
        if len(losses) < _BATCHES or (is_large and (n > 1 or isinstance(loss_fn, BatchLoss))):
            return _after_another_step(state)
        approach, seen = adapted(
            state.approach,
            loss_fn,
            lambda a: see_batches(losses, lambda loss: a.curvature(loss, params), thresholds_of),
        )
        rule, effects = rule_and_effects(capture.optimizers)
        window = state.window.under(f"{rule}, by {size}", effects).at(_rates(capture))
        window = replace(window.followed_by(seen), together=together)
        state = replace(state, approach=approach, window=window)
        values = {GLOBAL: window.values(n)} if seen else {}
        # Each measurement adds the batch of its own step: the ratio is not that of a few batches, again and again.
        notes = () if seen else (_WITHOUT_GRADIENT,)
        return ProbeResult(values, carry=state, wants_own_step=True, notes=notes)

    def _in_shards(self, capture: Capture, state: "_State") -> ProbeResult:
        """The critical sharpness of the step just taken, by forward passes."""
        if not state.is_recorded:
            return _after_another_step(state)
        segment = step_segment(capture)
        if segment is None:
            return ProbeResult(carry=state, wants_own_step=True)
        with capture.training_loss(self.loss_fn) as loss_fn:
            try:
                values, start = critical_values(segment, loss_fn, state.start, None)
            except FloatingPointError:
                return ProbeResult(carry=state, wants_own_step=True)
        return ProbeResult({GLOBAL: values} if values else {}, carry=replace(state, start=start), wants_own_step=True)

    def _of_step(
        self, capture: Capture, loss_fn: Callable[[], Tensor], state: "_State"
    ) -> tuple[Approach, Mapping[str, float], float]:
        """The ratios of the step just taken; none if it moved nothing."""
        segment = step_segment(capture)
        if segment is None:
            return state.approach, {}, state.start
        own, other = loss_fn, None
        if isinstance(loss_fn, TapeLoss):
            own = replace(loss_fn, tapes=loss_fn.tapes[-1:])
            other = replace(loss_fn, tapes=loss_fn.tapes[-2:-1]) if len(loss_fn.tapes) > 1 else None
        params = [p for p in capture.module.parameters() if p.requires_grad]
        approach, along = adapted(state.approach, own, lambda a: directional_values(a.curvature(own, params), capture))
        try:
            halves = None if other is None else (partial(segment.loss, own), partial(segment.loss, other))
            values, start = critical_values(segment, own, state.start, halves)
        except FloatingPointError:
            return approach, along, state.start
        return approach, {**along, **values}, start


@dataclass(frozen=True, slots=True)
class _State:
    """What the next measurement goes on from; `is_recorded` once the step that it measures will be.

    `batch` is that of the last measurement with a `loss_fn`.
    """

    approach: Approach = field(default_factory=Approach)
    window: BatchWindow = field(default_factory=BatchWindow)
    start: float = 1.0
    is_recorded: bool = False
    batch: Any = None


def _rates(capture: Capture) -> list[float]:
    """The learning rates of the step to come, as the threshold has them."""
    return [float(group.get("lr", math.nan)) for optimizer in capture.optimizers for group in optimizer.param_groups]


def _after_another_step(state: _State) -> ProbeResult:
    """No values yet: a step has to be recorded first, the next one. Asked for once: it may be refused."""
    again = not state.is_recorded
    return ProbeResult(carry=replace(state, is_recorded=True), wants_own_step=True, again_after_step=again)


def _size(loss_fn: Callable[[], Tensor], n: int) -> int:
    """How many recorded batches count as one: the n of an update, or its half and so on, if twice as many are there."""
    if not isinstance(loss_fn, TapeLoss) or len({(tape.owners, tape.place) for tape in loss_fn.tapes}) > 1:
        return 1
    while n > 1 and len(loss_fn.tapes) < _BATCHES * n:
        n //= 2
    return n


def _chosen(loss_fn: Callable[[], Tensor], state: _State, size: int) -> Sequence[TapeLoss | BatchLoss]:
    """The next recorded batches in turn, each as a loss of its own: `size` of them count as one."""
    if isinstance(loss_fn, BatchLoss):
        return (loss_fn,) if state.batch is None else (replace(loss_fn, batch=state.batch), loss_fn)
    if not isinstance(loss_fn, TapeLoss):
        return ()
    n, first = len(loss_fn.tapes), state.window.count * size
    places = [range(first + k * size, first + (k + 1) * size) for k in range(min(_BATCHES, n // size))]
    return [replace(loss_fn, tapes=tuple(loss_fn.tapes[i % n] for i in own)) for own in places]
