"""Prove groups by permuting their neurons: the output must not change, the gradient only be permuted."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from lightning_topo.memory import is_out_of_memory
from lightning_topo.neurons.group import NeuronGroup, ParamSlice, block_derangement
from lightning_topo.neurons.precision import float64_everywhere
from lightning_topo.neurons.preserve import (
    Run,
    named_state,
    run_with,
    seed_everywhere,
    significant,
    untouched,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How small a change must be: a residual against the control, a control against the output.

    `ratio` is the largest residual of a proved group, relative to the change that permuting a single
    slice makes (the negative control). Where that control is itself below `floor` times the largest output,
    the group has too little influence to be judged.
    """

    ratio: float
    floor: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way to verify: in float64 or as the model is, how far off its parameters, with gradients or not."""

    float64: bool = True
    spread: float = 1.0
    gradients: bool = True


ATTEMPTS = (Attempt(), Attempt(spread=0.1), Attempt(gradients=False), Attempt(float64=False))
FLOAT64 = Tolerance(ratio=1e-6, floor=1e-8)
NATIVE = Tolerance(ratio=2e-3, floor=1e-3)


def verify_groups(model: nn.Module, groups: Sequence[NeuronGroup], run: Run, *, seed: int = 0) -> list[NeuronGroup]:
    """The groups with their status: `verified`, `inert`, or reduced to `incoming_only` with the reason.

    With P a random permutation of the neurons that leaves none in place, f the output and L the loss (or,
    where `run` returns no scalar, a fixed random combination of the outputs),

        f(P theta) = f(theta)   and   grad L(P theta) = P grad L(theta)

    are checked in evaluation mode at perturbed float64 copies of the parameters, so that values equal at
    initialisation (unit norms, zero biases) cannot hide a wrong slice. The residual is judged against a
    negative control, the change that permuting a single slice makes. All groups are permuted together, and
    one by one only where that leaves a doubt: the cost is two gradients in all if all is well, and another
    gradient and two forward passes for each group in doubt. Where a model cannot run in float64, its own
    precision and a coarser tolerance are used; where it has no gradient, the output alone is compared, and
    `reason` says so. The model is not changed. Where memory runs out, that error is raised: run it on fewer samples.
    """
    if all(group.status == "incoming_only" for group in groups):
        return list(groups)
    reason = ""
    with untouched(model):
        for attempt in ATTEMPTS:
            try:
                return Bench(model, run, seed, attempt).judge(groups)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.info("no verification by %s (%s)", attempt, reason)
    reason = f"the model did not run on perturbed parameters ({reason})"
    return [group if group.status == "incoming_only" else group.with_status("unverified", reason) for group in groups]


@dataclass(frozen=True, slots=True)
class Trial:
    """What permuting did: the change of the output and the largest error of the gradient, both relative."""

    residual: float
    gradient_error: float


class Bench:
    """A model at perturbed copies of its parameters, where permutations are tried."""

    def __init__(self, model: nn.Module, run: Run, seed: int, attempt: Attempt) -> None:
        self.model = model
        self.run = run
        self.seed = seed
        self.attempt = attempt
        self.tolerance = FLOAT64 if attempt.float64 else NATIVE
        parameters, buffers = named_state(model)
        self.trainable = [name for name, p in parameters.items() if p.requires_grad]
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {
            name: perturbed(t, generator, _spread(name, parameters, attempt), float64=attempt.float64)
            for name, t in {**parameters, **buffers}.items()
        }
        for name, tensor in self.tensors.items():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.3)
        self.generator = generator
        self.reference, self.gradient = self.evaluate(self.tensors)
        largest = [float(g.abs().max()) for g in self.gradient.values() if g.numel()]
        self.gradient_scale = max(largest, default=0.0) or 1.0
        if not len(self.reference):
            raise RuntimeError("expected the run to return a floating tensor, got none")
        if not bool(torch.isfinite(self.reference).all()):
            raise RuntimeError("expected finite outputs at perturbed parameters")
        self.scale = float(self.reference.abs().max().clamp_min(1e-30))

    def judge(self, groups: Sequence[NeuronGroup]) -> list[NeuronGroup]:
        """Each group with its status."""
        cases = [group for group in groups if group.n > 1 and group.status != "incoming_only"]
        together = self._trial(cases)
        return [self._verdict(group, together) for group in groups]

    def output(self, tensors: Mapping[str, Tensor]) -> Float64[Tensor, " outputs"]:
        """All significant outputs, flattened."""
        with torch.no_grad(), self._precision():
            return self._flatten(self._run(tensors)).detach()

    def evaluate(self, tensors: Mapping[str, Tensor]) -> tuple[Float64[Tensor, " outputs"], dict[str, Tensor]]:
        """Outputs, and the gradient of the loss in the trainable parameters."""
        leaves = {name: t.detach().requires_grad_() if name in self.trainable else t for name, t in tensors.items()}
        with torch.set_grad_enabled(self.attempt.gradients), self._precision():
            output = self._flatten(self._run(leaves))
            if not output.requires_grad:
                return output.detach(), {}
            weights = torch.randn(len(output), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
            loss = output.sum() if len(output) == 1 else output @ weights.to(output.device)
            names = [name for name in self.trainable if leaves[name].requires_grad]
            gradients = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
        return output.detach(), {name: g.detach() for name, g in zip(names, gradients, strict=True) if g is not None}

    def _run(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        seed_everywhere(self.model, self.seed)
        return significant(run_with(self.model, self.run, tensors))

    def _precision(self) -> AbstractContextManager[Any]:
        return float64_everywhere() if self.attempt.float64 else nullcontext()

    def _flatten(self, outputs: Sequence[Tensor]) -> Float64[Tensor, " outputs"]:
        floating = [t.to(torch.float64).flatten() for t in outputs if t.is_floating_point()]
        return torch.cat(floating) if floating else torch.zeros(0, dtype=torch.float64)

    def _trial(self, groups: Sequence[NeuronGroup]) -> Trial:
        """Permute groups at once: the change of the output, and the error of the gradient."""
        tensors, expected = dict(self.tensors), dict(self.gradient)
        for group in groups:
            permutation = block_derangement(group, self.generator)
            tensors = group.permute(tensors, permutation)
            expected = group.permute(expected, permutation)
        output, gradient = self.evaluate(tensors)
        return Trial(self._change(output), self._gradient_error(gradient, expected))

    def _verdict(self, group: NeuronGroup, together: Trial) -> NeuronGroup:
        """The status of one group, which is tried alone only where the joint trial leaves it in doubt."""
        if group.status == "incoming_only":
            return group
        if group.n == 1:
            return group.with_status("verified", "a single neuron has nothing to be exchanged with")
        control = self._control(group)
        trial = together if self._passes(together, control) else self._trial([group])
        if self._passes(trial, control):
            if control > self.tolerance.floor:
                return group.with_status("verified", "" if self.gradient else "by the output alone")
            return group.with_status("inert", f"the output hardly depends on it (control {control:.1e})")
        if trial.residual > self.tolerance.ratio * max(control, self.tolerance.floor):
            return group.incoming_only(
                f"not complete: permuting its neurons changes the output by {trial.residual:.1e} of its size "
                f"(a single slice: {control:.1e})"
            )
        return group.incoming_only(
            f"permuting its neurons changes the gradient of the loss by {trial.gradient_error:.1e} of it"
        )

    def _passes(self, trial: Trial, control: float) -> bool:
        small = trial.residual <= self.tolerance.ratio * max(control, self.tolerance.floor)
        return small and trial.gradient_error <= self.tolerance.ratio

    def _control(self, group: NeuronGroup) -> float:
        """The change made by permuting one slice alone: by the gradient, or by a run where that vanishes."""
        change = 0.0
        for measure in (self._slope, self._measured):
            for piece in _strongest(group):
                alone = NeuronGroup(group.name, group.kind, group.n, group.block_shape, (piece,))
                part = {name: self.tensors[name] for name in piece.names(group.n)}
                moved = alone.permute(part, block_derangement(group, self.generator))
                change = max(change, measure(moved))
                if change > self.tolerance.floor:
                    return change
        return change

    def _slope(self, moved: Mapping[str, Tensor]) -> float:
        """The change of the output, to first order, when some tensors are replaced."""
        slope = sum(
            float((self.gradient[name] * (tensor - self.tensors[name])).sum())
            for name, tensor in moved.items()
            if name in self.gradient
        )
        return abs(slope) / len(self.reference) ** 0.5 / self.scale

    def _measured(self, moved: Mapping[str, Tensor]) -> float:
        """The change of the output when some tensors are replaced."""
        return self._change(self.output({**self.tensors, **moved}))

    def _change(self, output: Float64[Tensor, " outputs"]) -> float:
        """The largest change of an output, relative to the largest output; infinite where shapes change."""
        if output.shape != self.reference.shape:
            return float("inf")
        change = float((output - self.reference).abs().max()) / self.scale
        return change if change == change else float("inf")

    def _gradient_error(self, gradient: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
        """The largest error of the permuted gradient, in all parameters, relative to its largest entry."""
        if gradient.keys() != expected.keys():
            return float("inf")
        errors = [float((gradient[name] - wanted).abs().max()) for name, wanted in expected.items() if wanted.numel()]
        return max(errors, default=0.0) / self.gradient_scale


def perturbed(
    tensor: Shaped[Tensor, "*shape"], generator: torch.Generator, spread: float, *, float64: bool
) -> Shaped[Tensor, "*shape"]:
    """A copy moved off its initialisation by noise of `spread` times its own spread (at least 0.15).

    Values that are not finite are replaced first: the structure is tested, not the state of training.
    """
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    copy = tensor.detach().to(torch.float64 if float64 else tensor.dtype, copy=True).nan_to_num_(0.0, 0.0, 0.0)
    if spread > 0 and copy.numel():
        own = max(float(copy.double().std(correction=0)), 0.15)
        copy += spread * own * torch.randn(copy.shape, generator=generator).to(copy)
    return copy


def _spread(name: str, parameters: Mapping[str, Tensor], attempt: Attempt) -> float:
    """Parameters and running statistics are perturbed; other buffers are constants of the model."""
    moved = name in parameters or name.endswith(("running_mean", "running_var"))
    return attempt.spread if moved else 0.0


def _strongest(group: NeuronGroup) -> list[ParamSlice]:
    """The slices most likely to matter alone: the first that feeds and the first that reads the neurons."""
    chosen = [next((s for s in group.slices if s.role == role), None) for role in ("incoming", "outgoing")]
    return [piece for piece in chosen if piece is not None] or list(group.slices[:2])
