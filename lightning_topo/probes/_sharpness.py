"""How close the training is to the edge of stability."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_topo._keywords import explains_keywords
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons._capture import FLAT, Sharding
from lightning_topo.probes._approach import Approach, adapted, parts_of
from lightning_topo.probes._batch_window import edge_ratio
from lightning_topo.probes._curvature_in_shards import curvature_of_step
from lightning_topo.probes._directional import directional_values
from lightning_topo.probes._period import Period
from lightning_topo.probes._probe import Capture, LossFn, ProbeResult, ProbeUnavailable, refuse_complex
from lightning_topo.probes._step_edge import StepEdge
from lightning_topo.probes._swaps import swap_directions
from lightning_topo.stability import (
    Curvature,
    LanczosSettings,
    LossPart,
    ParameterThreshold,
    Thresholds,
    awaits_first_step,
    by_autograd,
    by_backward,
    curvature_batch_sharpness,
    curvature_elsewhere,
    curvature_sharpness,
    directional_ratio,
    parameter_thresholds,
    scaled_sharpness,
    swap_curvature,
)


@explains_keywords
@dataclass(frozen=True, slots=True)
class Sharpness:
    """Measures the largest Hessian eigenvalue of the training loss, on the samples of recorded steps.

    A recorded step is a training step whose operations the monitor has recorded: its loss is replayed at the present
    parameters, without running the module's code.

    Values of the whole network:

    - `sharpness`, the eigenvalue, with `residual`, its error bound, `n_hvp`, the number of Hessian products, and
      `converged`, 1 or 0.

    If the optimizer's stability threshold is known, also:

    - `sharpness_ratio`, the sharpness divided by that threshold, with `ratio_residual`, its error bound; 1 at the edge
      of stability;
    - `eta_lambda`, the learning rate times the largest curvature, scaled as the optimizer scales the gradient; the
      sufficient condition of arXiv:2510.02670 needs it below 1;
    - `directional_ratio`, Delta^T H Delta / (-2 g^T Delta), with Delta the step just taken, H the Hessian at its end,
      and g the gradient at its beginning; 1 at the edge.

    A monitor also runs `StepEdge`, which finds the edge of stability for small batches. If no threshold is known,
    `StepEdge` measures `directional_ratio` in place of this probe, unless parameters are sharded.

    If they are (FSDP, ZeRO-3), the loss is that of the step just taken, the mean over the processes. Products are
    finite differences of its gradient. Units of parameters are gathered one at a time, and no process holds a vector of
    all parameters. Tensor parallel needs a `loss_fn`. `StepEdge` measures `critical_sharpness`, which costs much less:
    the probes that a monitor has by default measure nothing else in shards (`in_shards=False`).

    If memory runs out, the loss is evaluated in smaller and smaller parts. If an operator cannot be differentiated
    twice, products are finite differences. The record shows both (`micro_batch`, `exact`), and a warning is given once.

    Args:
        every_n_steps: The period; "auto" begins with every 25th step.
        loss_fn: `loss_fn(module, batch)`, on the batch of the last recorded step, replaces the recorded loss.
        tolerance: The relative residual at which an eigenvalue has converged.
        max_products: The most Hessian products of one start.
        n_largest: How many eigenvalues to measure; the others are `sharpness_2`, ...
        micro_batch: Evaluate the loss on this many samples at a time: less memory, but products take about half as long
            again. Only for a loss that is a mean over samples. None splits recorded steps only if their graphs would
            need more memory than the step did. The record's `micro_batch` is the size of the largest part. A step
            whose samples depend on each other is never split.
        batch_sharpness: Add `batch_sharpness`, the mean of g^T H g / g^T g over parts of this many samples, g the
            gradient and H the Hessian of a part; without `loss_fn` each recorded step is a part, whatever the number.
            Minibatch SGD brings it to 2 / lr (Andreyev and Beneventano, arXiv:2412.20553). If the optimizer's threshold
            is known, also add `batch_sharpness_ratio`, 1 at the edge of stability for batches of this size, from the
            median part, and `batch_noise`, the share of a part's curvature that the other parts do not have. Without
            `loss_fn` the ratio is that of updates that take as many recorded steps as the training's do.
        swap_pairs: For each group look at this many of its closest pairs of neurons, and add the largest `swap_ratio`:
            |Δ_i - Δ_j| / |x_i - x_j| in the next step, predicted by the Hessian along the direction that exchanges the
            two neurons. `swap_curvature` is the curvature along it. Blocks of more than 8192 neurons are left out.
        in_shards: Whether to measure without a `loss_fn` if parameters are sharded. Each product takes two gradients of
            the recorded step, which gather all parameters twice.
        seed: Seeds the random start of Lanczos' method.

    Raises `ValueError` if a number is out of its range.

    >>> Sharpness(every_n_steps=10).period
    Period(every=10, unit='step', adaptive=False)
    """

    every_n_steps: int | Literal["auto"] = "auto"
    loss_fn: LossFn | None = None
    tolerance: float = 0.02
    max_products: int = 60
    n_largest: int = 1
    micro_batch: int | None = None
    batch_sharpness: int | None = None
    swap_pairs: int = 0
    in_shards: bool = True
    seed: int = 0
    name: str = field(default="sharpness", init=False, repr=False)
    needs_parameters_before: ClassVar[bool] = True
    needs_gradient_scales: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _ = self.period
        LanczosSettings(self.tolerance, max_products=self.max_products, n_largest=self.n_largest)
        for name in ("micro_batch", "batch_sharpness"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        if self.swap_pairs < 0:
            raise ValueError(f"expected swap_pairs >= 0, got {self.swap_pairs}")

    @property
    def period(self) -> Period:
        """How often the probe measures, from `every_n_steps`; "auto" begins with every 25th step."""
        return Period.parse(self.every_n_steps, default=25)

    @property
    def companions(self) -> tuple[StepEdge, ...]:
        """The probes that a monitor adds when it runs this one: a `StepEdge` with the same period and loss."""
        # Of one value there is one series: what this probe measures of batches the other leaves out.
        return (StepEdge(self.every_n_steps, self.loss_fn, batches=self.batch_sharpness is None),)

    def measure(self, capture: Capture) -> ProbeResult:
        """Measure the Hessian at the present parameters, and the optimizer's threshold for the next step.

        Raises `ProbeUnavailable` without a `loss_fn` if no training step could be recorded, or under tensor parallel;
        with one under FSDP1 and ZeRO-3; for complex parameters; and for `swap_pairs` or `batch_sharpness` with any
        sharded parameters.
        """
        self._refuse_shards(capture.sharding)
        refuse_complex(capture)
        carry = None if capture.previous is None else capture.previous.carry
        if capture.sharding != "whole" and self.loss_fn is None:
            return self._in_shards(capture, carry)
        start = _Start(self._approach(capture.sharding)) if carry is None else carry
        with capture.training_loss(self.loss_fn) as loss_fn:
            if capture.sharding != "whole":
                # Another approach would be one that the other processes do not take.
                return self._measure(capture, loss_fn, start, start.approach)
            approach, result = adapted(
                start.approach, loss_fn, lambda approach: self._measure(capture, loss_fn, start, approach)
            )
        if approach != start.approach:
            warnings.warn(_explained(approach), stacklevel=2)
        return result

    def _measure(
        self, capture: Capture, loss_fn: Callable[[], Tensor], start: "_Start", approach: Approach
    ) -> ProbeResult:
        params = tuple(p for p in capture.module.parameters() if p.requires_grad)
        curvature = approach.curvature(loss_fn, params)

        def thresholds() -> Thresholds:
            # Not kept: for an adaptive optimizer they are three times the size of the parameters.
            return parameter_thresholds(
                capture.optimizers, params, curvature.gradient, gradient_scales=capture.gradient_scales
            )

        values, raw, scaled, reason = self._values(curvature, thresholds, start)
        if (size := approach.part_size(loss_fn)) is not None:
            values["micro_batch"] = float(size)
        # Of one value there is one series: where no threshold is known, `StepEdge` measures it on the step's own batch.
        if "sharpness_ratio" in values or capture.sharding != "whole":
            values |= directional_values(curvature, capture)
        by_group = self._swaps(curvature, capture, thresholds().parameters if self.swap_pairs else None)
        if self.batch_sharpness is not None:
            at_hand = thresholds().parameters
            del curvature  # its graph makes room
            parts = parts_of(loss_fn, self.batch_sharpness)
            n = capture.batches_per_update if self.loss_fn is None else 1
            values |= _batch_sharpness(parts, params, at_hand, replace(approach, micro_batch=None), n)
        waits = awaits_first_step(capture.optimizers)
        return ProbeResult(
            {GLOBAL: values} | by_group,
            carry=start.followed_by(approach, raw, scaled),
            # Only once: an optimizer that waits longer is met again at the regular times.
            again_after_step=capture.previous is None and waits,
            notes=() if waits else _notes(reason),
        )

    def _in_shards(self, capture: Capture, start: "_Start | None") -> ProbeResult:
        """The same by the gradient of the step just taken, which its loss has in shards."""
        if start is None:
            return ProbeResult(carry=_Start(Approach()), wants_own_step=True, again_after_step=True)
        with curvature_of_step(capture) as found:
            if found is None:
                return ProbeResult(carry=start, wants_own_step=True)
            curvature, thresholds, step = found
            values, raw, scaled, reason = self._values(curvature, thresholds, start)
            ratio = directional_ratio(curvature, step)
        values |= {} if ratio is None else {"directional_ratio": ratio}
        return ProbeResult(
            {GLOBAL: values},
            carry=start.followed_by(start.approach, raw, scaled),
            wants_own_step=True,
            notes=_notes(reason),
        )

    def _values(
        self, curvature: Curvature, thresholds: Callable[[], Thresholds], start: "_Start"
    ) -> tuple[dict[str, float], Tensor, Tensor | None, str]:
        """The values of the whole network, the Ritz vectors for the next start, and why there is no threshold."""
        settings = LanczosSettings(
            self.tolerance, max_products=self.max_products, n_largest=self.n_largest, seed=self.seed
        )
        raw = curvature_sharpness(curvature, start=start.raw, settings=settings)
        raw = replace(raw, vector=_compact(raw.vector))
        values = {
            "sharpness": raw.value,
            "residual": raw.residual,
            "n_hvp": float(raw.n_hvp),
            "converged": float(raw.converged),
            "exact": float(raw.exact),
        } | {f"sharpness_{k}": value for k, value in enumerate(raw.top[1:], start=2)}
        found = thresholds()
        known, reason = list(found.parameters or ()), found.reason or ""
        del found
        if not known:
            return values, raw.vector, None, reason
        # Handed over: nobody holds them while the products are taken.
        at_hand, known = [known], None
        scaled = scaled_sharpness(curvature, at_hand.pop(), raw, start=start.scaled, settings=settings)
        values |= {
            "sharpness_ratio": scaled.ratio,
            "ratio_residual": scaled.residual,
            "eta_lambda": scaled.eta_lambda,
            "n_hvp": float(raw.n_hvp + scaled.n_hvp),
            "converged": float(raw.converged and scaled.converged),
        }
        return values, raw.vector, None if scaled.vector is None else _compact(scaled.vector), ""

    def _approach(self, sharding: Sharding) -> Approach:
        """The first approach that is tried."""
        if sharding == "whole":
            return Approach(self.micro_batch)
        # FSDP2's hooks return gradients once only. A second derivative through tensor parallel's placements would be
        # wrong: torch loses partial sums in it.
        return Approach(self.micro_batch, "parameters in shards", by_backward if sharding == "fsdp2" else by_autograd)

    def _refuse_shards(self, sharding: Sharding) -> None:
        """Raise `ProbeUnavailable` if parameters are sharded in a way that makes this impossible."""
        if sharding != "whole" and self.loss_fn is None and not self.in_shards:
            raise ProbeUnavailable(
                "Hessian products of parameters in shards are measured only where they are asked for.",
                "Nothing has to be done: `critical_sharpness` shows the edge of stability. To ask for them, name the "
                "probe: probes=[Distortion(), Sharpness()].",
            )
        if sharding in FLAT and self.loss_fn is not None:
            name = "FSDP1 (FSDPStrategy)" if sharding == "fsdp1" else "DeepSpeed ZeRO-3"
            raise ProbeUnavailable(
                f"Hessian products of a loss_fn cannot be computed from the flat shards of {name}.",
                "Leave it out: Sharpness() measures the training's own loss. For another one train with FSDP2 "
                "(ModelParallelStrategy), tensor parallel or DDP.",
            )
        if sharding == "tensor_parallel" and self.loss_fn is None:
            raise ProbeUnavailable(
                "Hessian products under tensor parallel need a loss that can be run again.",
                "Give the probe one: Sharpness(loss_fn=lambda module, batch: ...). `critical_sharpness` needs none.",
            )
        if sharding != "whole" and (self.swap_pairs or self.batch_sharpness is not None):
            raise ProbeUnavailable(
                "swap_pairs and batch_sharpness need whole parameters on every process.",
                "Leave them out if parameters are sharded: Sharpness().",
            )

    def _swaps(
        self, curvature: Curvature, capture: Capture, thresholds: Sequence[ParameterThreshold] | None
    ) -> dict[str, dict[str, float]]:
        """By group, the pair whose swap the step feels most, of the closest ones."""
        found: dict[str, dict[str, float]] = {}
        params = dict(capture.module.named_parameters())
        for group in capture.groups if self.swap_pairs else ():
            swaps = [
                swap_curvature(curvature, direction, thresholds)
                for direction in swap_directions(group, capture.neurons[group.name], params, self.swap_pairs)
            ]
            if not swaps:
                continue
            worst = max(swaps, key=lambda swap: abs(swap.curvature) if swap.ratio is None else swap.ratio)
            found[group.name] = {"swap_curvature": worst.curvature}
            if worst.ratio is not None:
                found[group.name]["swap_ratio"] = worst.ratio
        return found


_COLD_EVERY = 10
"""A warm start stays with its eigenvector when another one overtakes it: every so often one begins without."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What the next measurement starts from: how the last one could be made, and its Ritz vectors.

    `age` counts the measurements since one began without them.
    """

    approach: Approach
    raw: Tensor | None = None
    scaled: Tensor | None = None
    age: int = 0

    def followed_by(self, approach: Approach, raw: Tensor, scaled: Tensor | None) -> "_Start":
        """The start of the measurement after this one, whose results these are."""
        if self.age + 1 >= _COLD_EVERY:
            return _Start(approach)
        return _Start(approach, raw, scaled, self.age + 1)


_COMPACT = 2**24
"""Bytes above which a vector between two measurements lies in the host's memory, in half precision."""


def _compact(vector: Tensor) -> Tensor:
    """The vector as a start, which need not be exact, is kept."""
    is_large = vector.numel() * vector.element_size() > _COMPACT
    return vector.to("cpu", torch.bfloat16) if is_large else vector


def _notes(reason: str) -> tuple[str, ...]:
    """Why there is no threshold, for the record."""
    return (f"There is no sharpness_ratio and no eta_lambda: {reason}.",) if reason else ()


def _explained(approach: Approach) -> str:
    """What a measurement could not be made without, for the user."""
    sentences = []
    if approach.obstacle is not None:
        sentences.append(
            f"{approach.obstacle} has no second derivative: products of the Hessian are finite differences of the "
            "gradient, right to about 0.1 % in float32 (recorded as exact = 0)."
        )
    if approach.micro_batch is not None:
        sentences.append(
            f"The loss is evaluated on {approach.micro_batch} samples at a time, because memory ran out with more "
            "(recorded as micro_batch). That is the same loss only if it is a mean over samples."
        )
    return "sharpness: " + " ".join(sentences)


def _batch_sharpness(
    parts: Sequence[LossPart],
    params: Sequence[Tensor],
    thresholds: Sequence[ParameterThreshold] | None,
    approach: Approach,
    together: int | None,
) -> dict[str, float]:
    """Of the parts' own curvature the mean; their noise from how much of it the part before each has too.

    No ratio where it is not known how many parts an update takes `together`.
    """
    found, elsewhere = [], []
    before = None
    for _, loss_fn in parts:
        curvature = approach.curvature(loss_fn, params)
        found.append(curvature_batch_sharpness(curvature, thresholds))
        if before is not None:
            elsewhere.append(curvature_elsewhere(curvature, before, thresholds))
        before = curvature
    values = {"batch_sharpness": _weighted(parts, [each.value for each in found])}
    if thresholds is None or not elsewhere or together is None:
        return values
    noise = min(max(1.0 - sum(elsewhere) / len(elsewhere), 0.0), 1.0)
    ratios = [(each.small, each.large) for each in found if each.small is not None and each.large is not None]
    return values | {"batch_noise": noise, "batch_sharpness_ratio": edge_ratio(ratios, noise, together)}


def _weighted(parts: Sequence[LossPart], values: Sequence[float]) -> float:
    return sum(weight * value for (weight, _), value in zip(parts, values, strict=True))
