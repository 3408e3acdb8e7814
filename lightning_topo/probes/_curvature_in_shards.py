"""The curvature of the step just taken where parameters lie in shards, and what an optimizer makes of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol, cast

from jaxtyping import Float
from torch import Tensor

from lightning_topo.probes._critical_sharpness import step_segment
from lightning_topo.probes._probe import Capture
from lightning_topo.stability import Curvature, Thresholds, parameter_thresholds
from lightning_topo.stability._finite_differences import GradientInShards, shard_finite_difference_hessian


class LossInShards(Protocol):
    """The loss that a capture has of a recorded step in shards, once it was evaluated at the step's own parameters."""

    def gradient(self) -> GradientInShards: ...


@contextmanager
def curvature_of_step(
    capture: Capture,
) -> Iterator[tuple[Curvature, Callable[[], Thresholds], Float[Tensor, " p"]] | None]:
    """The Hessian after the step just taken, on its own batch; what computes the thresholds; and the step.

    None without a step. A collective: all processes have a threshold, or none.
    """
    segment = step_segment(capture)
    if segment is None:
        yield None
        return
    with capture.training_loss(None) as loss_fn:
        try:
            segment.loss(loss_fn, 0.0)  # only there it is the loss that the step had
        finally:
            segment.restore()
        del segment
        gradient = cast(LossInShards, loss_fn).gradient()
        curvature = shard_finite_difference_hessian(gradient, obstacle="the recorded step of parameters in shards")
        yield curvature, partial(_thresholds, capture, gradient, curvature), _step(capture, gradient)


def _thresholds(capture: Capture, gradient: GradientInShards, curvature: Curvature) -> Thresholds:
    layout, scales = gradient.layout, capture.gradient_scales
    found = parameter_thresholds(
        capture.optimizers, gradient.parameters, curvature.gradient, gradient_scales=scales, layout=layout
    )
    if not layout.anywhere(found.parameters is None):
        return found
    reason = found.reason or "on another process there is none"
    if capture.sharding == "zero3":
        reason = "ZeRO-3's optimizer holds other tensors than the model's parameters"
    return Thresholds(None, found.rules, reason)


def _step(capture: Capture, gradient: GradientInShards) -> Float[Tensor, " p"]:
    """This process's part of the step that led here."""
    begins: Mapping[str, Tensor] = capture.parameters_before or {}
    known = {id(p): begins[name] for name, p in capture.module.named_parameters() if name in begins}
    pairs = zip(gradient.parameters, gradient.layout.params, strict=True)
    return gradient.layout.flatten(
        entries.detach() - (before if before.shape == entries.shape else before.reshape(-1)[: entries.numel()])
        for p, entries in pairs
        for before in (known[id(p)],)
    )
