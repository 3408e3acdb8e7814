"""How close the training is to the edge of stability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons.capture import Sharding
from lightning_topo.probes.batch_loss import BatchLoss
from lightning_topo.probes.period import Period
from lightning_topo.probes.probe import Capture, LossFn, ProbeResult, ProbeUnavailable
from lightning_topo.probes.swaps import swap_directions
from lightning_topo.stability import (
    Curvature,
    LanczosSettings,
    ParameterScaling,
    awaits_first_step,
    by_autograd,
    by_backward,
    curvature_sharpness,
    directional_ratio,
    flatten,
    hessian,
    parameter_scalings,
    scaled_sharpness,
    split_finite_difference_hessian,
    split_hessian,
    swap_curvature,
)


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Measures the largest Hessian eigenvalue of the training loss on a fixed probe batch.

    `every_n_steps="auto"` begins with every 25th. `loss_fn(module, batch)` replaces the module's `training_step`.
    Global values: `sharpness` (raw), with `residual`, `n_hvp` and `converged`; `sharpness_ratio` (edge of stability
    at 1, with `ratio_residual`) and `eta_lambda` where the optimizer's threshold is known; `directional_ratio` of the
    step just taken, for any optimizer, with the curvature where it ended.

    `n_largest` adds `sharpness_2`, ... `micro_batch` evaluates the loss on so many samples at a time: less memory, and
    products that cost about half as much again; only for a loss that is a mean over samples. `batch_sharpness` adds
    the mean over the probe batch's parts of so many samples of g^T H g / g^T g, which minibatch SGD brings to 2 / lr
    (Andreyev and Beneventano, arXiv:2412.20553). `swap_pairs` adds, by group and for so many of its closest pairs,
    the largest `swap_ratio` with its `swap_curvature`: what the curvature along the swap of two neurons makes of
    their critical ratio.

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
    seed: int = 0
    name: str = field(default="sharpness", init=False, repr=False)
    needs_parameters_before: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.period
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"expected tolerance between 0 and 1, got {self.tolerance}")
        for name in ("max_products", "n_largest", "micro_batch", "batch_sharpness"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        if self.swap_pairs < 0:
            raise ValueError(f"expected swap_pairs >= 0, got {self.swap_pairs}")

    @property
    def period(self) -> Period:
        """How often it measures."""
        return Period.parse(self.every_n_steps, default=25)

    def measure(self, capture: Capture) -> ProbeResult:
        """The curvature where the parameters stand now, against the step that comes next."""
        self._refuse_shards(capture.sharding)
        start = _Start() if capture.previous is None else capture.previous.carry
        params = tuple(p for p in capture.module.parameters() if p.requires_grad)
        scalings = parameter_scalings(capture.optimizers, params)
        settings = LanczosSettings(
            self.tolerance, max_products=self.max_products, n_largest=self.n_largest, seed=self.seed
        )
        with capture.training_loss(self.loss_fn) as loss_fn:
            curvature = self._curvature(loss_fn, params, capture.sharding)
            raw = curvature_sharpness(curvature, start=start.raw, settings=settings)
            values = {
                "sharpness": raw.value,
                "residual": raw.residual,
                "n_hvp": float(raw.n_hvp),
                "converged": float(raw.converged),
            } | {f"sharpness_{k}": value for k, value in enumerate(raw.top[1:], start=2)}
            scaled = None
            if scalings is not None:
                scaled = scaled_sharpness(curvature, scalings, raw, start=start.scaled, settings=settings)
                values |= {
                    "sharpness_ratio": scaled.ratio,
                    "ratio_residual": scaled.residual,
                    "eta_lambda": scaled.eta_lambda,
                    "n_hvp": float(raw.n_hvp + scaled.n_hvp),
                    "converged": float(raw.converged and scaled.converged),
                }
            values |= _directional(curvature, capture)
            by_group = self._swaps(curvature, capture, scalings)
            if self.batch_sharpness is not None:
                del curvature  # its graph makes room
                values["batch_sharpness"] = _batch_sharpness(_parts(loss_fn, self.batch_sharpness), params)
        return ProbeResult(
            {GLOBAL: values} | by_group,
            carry=_Start(raw.vector, None if scaled is None else scaled.vector),
            # Only once: an optimizer that waits longer is met again at the regular times.
            again_after_step=capture.previous is None and awaits_first_step(capture.optimizers),
        )

    def _curvature(self, loss_fn: Callable[[], Tensor], params: Sequence[Tensor], sharding: Sharding) -> Curvature:
        parts = None if self.micro_batch is None else _parts(loss_fn, self.micro_batch)
        if sharding != "whole":
            # FSDP2 brings gradients home by hooks, once; a second derivative through tensor parallel's placements is
            # possible, and wrong: torch loses partial sums in it.
            return split_finite_difference_hessian(
                parts or [(1.0, loss_fn)],
                params,
                differentiate=by_backward if sharding == "fsdp2" else by_autograd,
                obstacle="parameters in shards",
            )
        return hessian(loss_fn, params) if parts is None else split_hessian(parts, params)

    def _refuse_shards(self, sharding: Sharding) -> None:
        """Raises `ProbeUnavailable` where parameters lie so that this cannot be measured."""
        if sharding in ("fsdp1", "zero3"):
            name = "FSDP1 (FSDPStrategy)" if sharding == "fsdp1" else "DeepSpeed ZeRO-3"
            raise ProbeUnavailable(
                f"the Hessian's products are not to be had from the flat shards of {name}.",
                "Train with FSDP2 (ModelParallelStrategy), tensor parallel or DDP, or leave Sharpness() out of the "
                "probes: all else is measured.",
            )
        if sharding != "whole" and (self.swap_pairs or self.batch_sharpness is not None):
            raise ProbeUnavailable(
                "swap_pairs and batch_sharpness need whole parameters on every process.",
                "Leave them out where parameters are sharded: Sharpness().",
            )

    def _swaps(
        self, curvature: Curvature, capture: Capture, scalings: Sequence[ParameterScaling] | None
    ) -> dict[str, dict[str, float]]:
        """By group, the pair whose swap the step feels most, of the closest ones."""
        found: dict[str, dict[str, float]] = {}
        params = dict(capture.module.named_parameters())
        for group in capture.groups if self.swap_pairs else ():
            swaps = [
                swap_curvature(curvature, direction, scalings)
                for direction in swap_directions(group, capture.neurons[group.name], params, self.swap_pairs)
            ]
            if not swaps:
                continue
            worst = max(swaps, key=lambda swap: abs(swap.curvature) if swap.ratio is None else swap.ratio)
            found[group.name] = {"swap_curvature": worst.curvature}
            if worst.ratio is not None:
                found[group.name]["swap_ratio"] = worst.ratio
        return found


@dataclass(frozen=True, slots=True)
class _Start:
    """The Ritz vectors that the next measurement starts from."""

    raw: Tensor | None = None
    scaled: Tensor | None = None


def _directional(curvature: Curvature, capture: Capture) -> dict[str, float]:
    before = capture.parameters_before
    if before is None:
        return {}
    now = {name: p.detach() for name, p in capture.module.named_parameters() if p.requires_grad}
    if now.keys() != before.keys():
        return {}
    ratio = directional_ratio(curvature, flatten(p - before[name] for name, p in now.items()))
    return {} if ratio is None else {"directional_ratio": ratio}


def _batch_sharpness(parts: Sequence[tuple[float, Callable[[], Tensor]]], params: Sequence[Tensor]) -> float:
    total = 0.0
    for weight, loss_fn in parts:
        curvature = hessian(loss_fn, params)
        gradient = curvature.gradient
        total += weight * float(gradient @ (curvature @ gradient)) / max(float(gradient @ gradient), 1e-30)
    return total


def _parts(loss_fn: Callable[[], Tensor], size: int) -> Sequence[tuple[float, Callable[[], Tensor]]]:
    if not isinstance(loss_fn, BatchLoss):
        raise ValueError(f"expected a BatchLoss, which can be cut into parts of {size}, got {type(loss_fn).__name__}")
    return loss_fn.parts(size)
