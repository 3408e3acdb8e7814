"""How close the training is to the edge of stability."""

from dataclasses import dataclass, field
from typing import Literal

from lightning_topo.measurement import GLOBAL
from lightning_topo.probes.period import Period
from lightning_topo.probes.probe import Capture, LossFn, ProbeResult
from lightning_topo.stability import parameter_scalings, stability


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Measures the largest Hessian eigenvalue of the training loss on a fixed probe batch.

    `every_n_steps="auto"` begins with every 25th. `loss_fn(module, batch)` replaces the module's `training_step`.
    Global values: `sharpness` (raw), with `residual`, `n_hvp` and `converged`; `sharpness_ratio` (edge of stability
    at 1) and `eta_lambda` where the optimizer's threshold is known.

    >>> Sharpness(every_n_steps=10).period
    Period(every=10, unit='step', adaptive=False)
    """

    every_n_steps: int | Literal["auto"] = "auto"
    loss_fn: LossFn | None = None
    tolerance: float = 0.02
    max_products: int = 60
    seed: int = 0
    name: str = field(default="sharpness", init=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.period
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"expected tolerance between 0 and 1, got {self.tolerance}")

    @property
    def period(self) -> Period:
        """How often it measures."""
        return Period.parse(self.every_n_steps, default=25)

    def measure(self, capture: Capture) -> ProbeResult:
        """The curvature where the parameters stand now, against the step that comes next."""
        with capture.training_loss(self.loss_fn) as loss_fn:
            found = stability(
                loss_fn,
                capture.module.parameters(),
                lambda params: parameter_scalings(capture.optimizers, params),
                start=None if capture.previous is None else capture.previous.carry,
                tolerance=self.tolerance,
                max_products=self.max_products,
                seed=self.seed,
            )
        values = {
            "sharpness": found.sharpness.value,
            "residual": found.sharpness.residual,
            "n_hvp": float(found.sharpness.n_hvp),
            "converged": float(found.sharpness.converged),
        }
        if found.ratio is not None:
            values["sharpness_ratio"] = found.ratio
        if found.eta_lambda is not None:
            values["eta_lambda"] = found.eta_lambda
        return ProbeResult({GLOBAL: values}, carry=found.sharpness.vector)
