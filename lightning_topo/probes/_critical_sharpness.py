"""How close the last step came to no longer lowering the loss: forward passes alone, any optimizer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_topo._tape import TapeLoss
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons._capture import FLAT, reshard
from lightning_topo.neurons._units import own_part
from lightning_topo.probes._batch_loss import BatchLoss
from lightning_topo.probes._period import Period
from lightning_topo.probes._probe import Capture, LossFn, ProbeResult, refuse_complex
from lightning_topo.stability import CriticalSharpness, critical_sharpness
from lightning_topo.stability._critical_sharpness import rounding_within
from lightning_topo.stability._hessian import seeded
from lightning_topo.stability._layout import Layout, local


@dataclass(frozen=True, slots=True)
class StepSharpness:
    """Measures the critical sharpness of the step just taken, by forward passes alone and for any optimizer.

    Values of the whole network:

    - `critical_sharpness`: 1 / s, with s the multiple of the step at which the loss is back at its value before the
      step. 1 is the edge of stability; below 1 a longer step would still lower the loss. It is 0 if the loss is lower
      at every multiple tried. If it is at none, the value is a lower bound: 1 / the shortest that raises the loss;
    - `critical_converged`: 1 if the search met `tolerance` within `max_forwards`, and the value is no bound, else 0;
    - `n_forwards`: the number of forward passes: about six for the search, and those for `critical_noise`;
    - `critical_noise`, with a `loss_fn`: see `noise`.

    Nothing is measured before the first step, after a step that moved nothing or so little that the loss shows no
    change, or if the loss before the step is not finite. The parameters are moved along the step and restored bit for
    bit.

    Args:
        every_n_steps: The period; "auto" begins with every 25th step.
        loss_fn: `loss_fn(module, batch)` on the batch of the step; None takes the loss of recorded steps.
        tolerance: The relative width of the bracket around s at which the search stops.
        max_forwards: The most forward passes of the search, at least 3.
        noise: Whether to add `critical_noise`, half the difference between the critical sharpness on the two halves of
            the batch. It takes six more passes, each on half a batch, and needs a `loss_fn` and a batch that can be
            cut.

    Raises `ValueError` if a number is out of its range.

    Source: arXiv:2601.16979.

    >>> StepSharpness(every_n_steps=10).period
    Period(every=10, unit='step', adaptive=False)
    """

    every_n_steps: int | Literal["auto"] = "auto"
    loss_fn: LossFn | None = None
    tolerance: float = 0.1
    max_forwards: int = 12
    noise: bool = True
    name: str = field(default="critical_sharpness", init=False, repr=False)
    needs_parameters_before: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _ = self.period
        critical_sharpness(lambda s: s, tolerance=self.tolerance, max_forwards=self.max_forwards)

    @property
    def period(self) -> Period:
        """How often the probe measures, from `every_n_steps`; "auto" begins with every 25th step."""
        return Period.parse(self.every_n_steps, default=25)

    def measure(self, capture: Capture) -> ProbeResult:
        """Measure 1 / s of the last step, s the multiple of it at which the loss is back where it was before the step.

        The result is empty if no optimizer has stepped since the last measurement, or the step moved nothing. Raises
        `ProbeUnavailable` for complex parameters, and without a `loss_fn` if the operations of a training step cannot
        be recorded and replayed.
        """
        refuse_complex(capture)
        start = 1.0 if capture.previous is None else float(capture.previous.carry)
        # A single batch must be that of the step: on another one the step looks as it does to test data.
        own = self.loss_fn is not None or capture.sharding != "whole"
        if own and capture.previous is None:
            return ProbeResult(carry=start, wants_own_step=True, again_after_step=True)
        segment = step_segment(capture)
        if segment is None:
            return ProbeResult(carry=start, wants_own_step=own)
        with capture.training_loss(self.loss_fn) as loss_fn:
            parts = _halves(loss_fn) if self.noise and capture.sharding == "whole" else None
            halves = None if parts is None else (partial(segment.loss, parts[0]), partial(segment.loss, parts[1]))
            try:
                values, start = critical_values(
                    segment, loss_fn, start, halves, tolerance=self.tolerance, max_forwards=self.max_forwards
                )
            except FloatingPointError:
                return ProbeResult(carry=start, wants_own_step=own)
        return ProbeResult({GLOBAL: values} if values else {}, carry=start, wants_own_step=own)


Evaluation = Callable[[float], Tensor]
"""The loss at a multiple of the step."""


def critical_values(
    segment: "StepSegment",
    loss_fn: Callable[[], Tensor],
    start: float,
    halves: tuple[Evaluation, Evaluation] | None,
    *,
    tolerance: float = 0.1,
    max_forwards: int = 12,
) -> tuple[dict[str, float], float]:
    """The critical sharpness of a step as a probe reports it, and where the next search should start.

    Nothing is reported of a step so short that the loss shows no change but rounding. Raises `FloatingPointError` where
    the loss before the step is not finite.
    """
    try:
        found = critical_sharpness(
            partial(segment.loss, loss_fn),
            start=start,
            tolerance=tolerance,
            max_forwards=max_forwards,
            rounding=_rounding(segment.layout.params, loss_fn),
            halves=halves,
        )
    finally:
        segment.restore()
    if math.isnan(found.value):
        return {}, start
    values = {
        "critical_sharpness": found.value,
        "critical_converged": float(found.converged),
        "n_forwards": float(found.n_forwards),
    }
    if found.noise is not None:
        values["critical_noise"] = found.noise
    return values, _start(found)


@dataclass(frozen=True, slots=True)
class StepSegment:
    """The line from the parameters before a step through those after it; of shards, every process moves its own."""

    module: nn.Module
    layout: Layout
    begins: Sequence[Tensor]
    ends: Sequence[Tensor]

    def loss(self, loss_fn: Callable[[], Tensor], multiple: float) -> Tensor:
        """The loss at this multiple of the step, every time with the same random numbers."""
        with torch.no_grad():
            for p, begin, end in zip(self.layout.params, self.begins, self.ends, strict=True):
                p.copy_(begin + multiple * (end - begin))
            self._forget_copies()
            with seeded(torch.initial_seed(), self.layout.params):
                return self.layout.mean(loss_fn().detach())

    def restore(self) -> None:
        """Put the parameters back to their values after the step."""
        with torch.no_grad():
            for p, end in zip(self.layout.params, self.ends, strict=True):
                p.copy_(end)
        self._forget_copies()

    def _forget_copies(self) -> None:
        """Autocast, and FSDP2 after a forward pass alone, keep the weights as they were."""
        torch.clear_autocast_cache()
        reshard(self.module)


def _rounding(params: Sequence[Tensor], loss_fn: Callable[[], Tensor]) -> float:
    """How far a loss is rounded by the types in which it is computed, as far as they are known."""
    if isinstance(loss_fn, TapeLoss):  # in single precision
        return 0.0
    if (known := getattr(loss_fn, "rounding", None)) is not None:
        return known
    device = params[0].device.type
    cast = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    return rounding_within(*cast, *(p.dtype for p in params))


def _start(found: CriticalSharpness) -> float:
    """Where the next search begins: at the multiple found, or as far as this one came to longer ones."""
    low, high = found.bracket
    reached = 1.0 if low == 0.0 else low if high == math.inf else 1.0 / found.value
    return min(max(reached, 1e-6), 1e6)


def step_segment(capture: Capture) -> StepSegment | None:
    """The step that led here; None where there was none, or none that moved a parameter that is still there."""
    trained = ((name, p) for name, p in capture.module.named_parameters() if p.requires_grad)
    now = {name: own_part(p) for name, p in trained}
    before = capture.parameters_before
    if before is None or before.keys() != now.keys():
        return None
    layout = Layout.of(now.values(), flat_copies=1 if capture.sharding in FLAT else None)
    pairs = [(local(before[name]), local(p)) for name, p in now.items()]
    if layout.anywhere(any(old.shape != new.shape for old, new in pairs)):  # ZeRO-3 has begun to keep some whole
        return None
    if not layout.anywhere(any(not torch.equal(old, new) for old, new in pairs)):
        return None
    ends = [p.detach().clone() for p in now.values()]
    return StepSegment(capture.module, layout, [before[name] for name in now], ends)


def _halves(loss_fn: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]] | None:
    if not isinstance(loss_fn, BatchLoss) or loss_fn.n_samples < 2:
        return None
    parts = loss_fn.parts((loss_fn.n_samples + 1) // 2)
    return (parts[0][1], parts[1][1]) if len(parts) == 2 else None
