"""Tapes at perturbed parameters, where neurons are permuted: one set of tensors is held, and no gradient whole."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64, Int, Shaped
from torch import Tensor

from lightning_topo._memory import in_parts, is_out_of_memory, largest_difference, largest_entry
from lightning_topo._tape import Tape
from lightning_topo._tape.attention_dropout import without_attention_dropout
from lightning_topo._tape.choices import with_choices_as_constants
from lightning_topo._tape.replay import replay
from lightning_topo.neurons._apart import exchanges_apart
from lightning_topo.neurons._group import NeuronGroup, ParamSlice, block_derangement
from lightning_topo.neurons._trial import FLOAT64, NATIVE, Attempt, Scaled, Tolerance, Trial

DOES_NOT_RUN = "the step does not run with its neurons permuted"
_TOLD_APART = 1e-2
"""So much of its largest entry must a gradient change when permuted, where it has to tell neurons apart."""
_PRIMES = (65537, 65539)


class Bench:
    """Tapes at perturbed copies of their parameters, where permutations of groups are tried."""

    def __init__(self, tapes: Sequence[Tape], groups: Sequence[NeuronGroup], seed: int, attempt: Attempt) -> None:
        tapes = tapes if attempt.choices else [with_choices_as_constants(tape) for tape in tapes]
        self.tapes = tapes = [without_attention_dropout(tape) for tape in tapes]
        self.seed: int = seed
        self.attempt: Attempt = attempt
        self.precision: torch.dtype | None = torch.float64 if attempt.float64 else None
        self.tolerance: Tolerance = FLOAT64 if attempt.float64 else NATIVE
        values: dict[str, Tensor] = {}
        trainable: dict[str, bool] = {}
        for tape in tapes:
            used = tape.params
            values |= {name: tensor for name, tensor in tape.named_values.items() if name in used}
            values |= tape.draws
            trainable |= {name: is_trained or trainable.get(name, False) for name, is_trained in tape.trainable.items()}
        wanted = {name for name, is_trained in trainable.items() if is_trained}
        for group in groups:  # a frozen one needs the gradient of one slice, or a run of its own to see that it matters
            strongest = [piece.names(group.n) for piece in _strongest(group)]
            if wanted.isdisjoint(name for names in strongest for name in names):
                wanted.update(*strongest[:1])
        self.differentiated = [name for name, value in values.items() if name in wanted and _has_gradient(value)]
        # A device's own: to draw as much as all parameters on the host would take longer than the proof.
        generators = {t.device: torch.Generator(t.device).manual_seed(seed) for t in values.values()}
        self.tensors = {
            name: perturbed(t, generators[t.device], _spread(name, trainable, attempt), float64=attempt.float64)
            for name, t in values.items()
        }
        for name, tensor in self.tensors.items():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.3)
        self.generator: torch.Generator = torch.Generator().manual_seed(seed)
        self._moved: list[tuple[NeuronGroup, Tensor]] = []
        self._movers: dict[str, dict[int, list[ParamSlice]]] = {}
        self._exchanged: dict[str, set[str]] = {}
        self.gradient: dict[str, Scaled] = {}
        self.reference = self.evaluate(self.tensors, self._keep)
        self.gradient_scale: float = max((one.scale for one in self.gradient.values()), default=0.0) or 1.0
        if not len(self.reference):
            raise RuntimeError("expected the run to return a floating tensor, got none")
        if not bool(torch.isfinite(self.reference).all()):
            raise RuntimeError("expected finite outputs at perturbed parameters")
        self.scale: float = float(self.reference.abs().max().clamp_min(1e-30))

    def judge(self, groups: Sequence[NeuronGroup]) -> list[NeuronGroup]:
        """Each group with its status."""
        cases = [i for i, group in enumerate(groups) if group.n > 1 and group.status != "incoming_only"]
        controls = {i: self._control(groups[i]) for i in cases}
        trials: dict[int, Trial] = {}
        self._bisect(groups, cases, controls, trials)
        return [
            self._verdict(group, trials[i], controls[i]) if i in trials else self._single(group)
            for i, group in enumerate(groups)
        ]

    def output(self, tensors: Mapping[str, Tensor]) -> Float64[Tensor, " outputs"]:
        """All outputs, flattened."""
        with torch.no_grad():
            return self._flatten(tensors).detach()

    def evaluate(
        self, tensors: Mapping[str, Tensor], take: Callable[[str, Tensor], None]
    ) -> Float64[Tensor, " outputs"]:
        """Outputs; `take` is given the gradient of the loss in the trained parameters and in a slice of frozen groups.

        One at a time, each as soon as it is there: together they take as much memory as the parameters.
        """
        if not self.attempt.gradients:
            return self.output(tensors)
        leaves = {
            name: t.detach().requires_grad_() if name in self.differentiated else t for name, t in tensors.items()
        }

        def taking(name: str) -> Callable[[Tensor], None]:
            def hook(leaf: Tensor) -> None:
                gradient, leaf.grad = leaf.grad, None
                if gradient is not None:
                    take(name, gradient)

            return hook

        for name in self.differentiated:
            leaves[name].register_post_accumulate_grad_hook(taking(name))
        with torch.enable_grad():
            output = self._flatten(leaves)
            if not output.requires_grad:
                return output.detach()
            weights = torch.randn(len(output), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
            loss = output.sum() if len(output) == 1 else output @ weights.to(output.device)
            loss.backward(inputs=[leaves[name] for name in self.differentiated])
        return output.detach()

    def _keep(self, name: str, gradient: Tensor) -> None:
        self.gradient[name] = Scaled.of(gradient)

    def _flatten(self, tensors: Mapping[str, Tensor]) -> Float64[Tensor, " outputs"]:
        outputs = [out for tape in self.tapes for out in replay(tape, tensors, precision=self.precision)]
        real = [torch.view_as_real(out) if out.is_complex() else out for out in outputs]
        floating = [t.to(torch.float64).flatten() for t in real if t.is_floating_point()]
        return torch.cat(floating) if floating else torch.zeros(0, dtype=torch.float64)

    def _bisect(
        self,
        groups: Sequence[NeuronGroup],
        cases: Sequence[int],
        controls: Mapping[int, float],
        trials: dict[int, Trial],
    ) -> None:
        """Permute groups together, and halves of them where together they do not pass."""
        if not cases:
            return
        cycles = {i: block_derangement(groups[i], self.generator) for i in cases}
        trial = self._trial([(groups[i], cycle) for i, cycle in cycles.items()])
        if all(self._passes(trial, controls[i]) for i in cases):
            trial = self._failure_apart(groups, cycles, controls) or trial
        if len(cases) == 1 or all(self._passes(trial, controls[i]) for i in cases):
            trials.update(dict.fromkeys(cases, trial))
            return
        middle = len(cases) // 2
        self._bisect(groups, cases[:middle], controls, trials)
        self._bisect(groups, cases[middle:], controls, trials)

    def _failure_apart(
        self, groups: Sequence[NeuronGroup], cycles: Mapping[int, Tensor], controls: Mapping[int, float]
    ) -> Trial | None:
        """A trial that groups fail which pass together: two make up for each other, or one is a ring.

        By the output alone, at a third of the cost: a group that is not complete changes it.
        """
        for exchanges in exchanges_apart({i: groups[i] for i in cycles}, cycles):
            trial = self._trial([(groups[i], rows) for i, rows in exchanges.items()], gradients=False)
            if not all(self._passes(trial, controls[i]) for i in exchanges):
                return trial
        return None

    def _trial(self, permutations: Sequence[tuple[NeuronGroup, Tensor]], *, gradients: bool = True) -> Trial:
        """Permute groups at once: the change of the output, and the error of the gradient."""
        self._restore()
        errors: dict[str, float] = {}

        def compare(name: str, gradient: Tensor) -> None:
            errors[name] = self._gradient_error(name, gradient)

        try:
            for group, permutation in permutations:
                self._move(group, permutation)
            if not gradients:
                return Trial(self._change(self.output(self.tensors)), 0.0)
            output = self.evaluate(self.tensors, compare)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return Trial(float("inf"), float("inf"), next(iter(str(error).splitlines()), type(error).__name__))
        if errors.keys() != self.gradient.keys():
            return Trial(self._change(output), float("inf"))
        return Trial(self._change(output), max(errors.values(), default=0.0) / self.gradient_scale, errors=errors)

    def _move(self, group: NeuronGroup, permutation: Int[Tensor, " rows"]) -> None:
        group.permute_(self.tensors, permutation)
        for piece in group.slices:
            names = piece.names(group.n)
            for name in names:
                self._movers.setdefault(name, {}).setdefault(len(self._moved), []).append(piece)
                if len(names) > 1:  # whole experts change places
                    self._exchanged.setdefault(name, {name}).update(names)
        self._moved.append((group, permutation))

    def _restore(self) -> None:
        """Undo the permutations of the trial before: only one set of tensors is held."""
        self._movers, self._exchanged = {}, {}
        while self._moved:
            group, permutation = self._moved.pop()
            group.permute_(self.tensors, permutation.argsort(dim=-1))

    def _single(self, group: NeuronGroup) -> NeuronGroup:
        if group.status == "incoming_only":
            return group
        return group.with_status("verified", "a single neuron has nothing to be exchanged with")

    def _verdict(self, group: NeuronGroup, trial: Trial, control: float) -> NeuronGroup:
        if self._passes(trial, control):
            if control > self.tolerance.floor:
                return group.with_status("verified", self._caveat())
            little = f"the output hardly depends on it (control {control:.1e})"
            if self._is_proved_by_its_own(group, trial):
                return group.with_status("verified", f"by its own gradient: {little}")
            return group.with_status("inert", little)
        if trial.failure:
            return group.incoming_only(f"{DOES_NOT_RUN} ({trial.failure})")
        if trial.residual > self.tolerance.ratio * max(control, self.tolerance.floor):
            return group.incoming_only(
                f"not complete: permuting its neurons changes the output by {trial.residual:.1e} of its size "
                f"(a single slice: {control:.1e})"
            )
        return group.incoming_only(
            f"permuting its neurons changes the gradient of the loss by {trial.gradient_error:.1e} of it"
        )

    def _caveat(self) -> str:
        """What the proof leaves out, in words."""
        notes = [] if self.gradient else ["by the output alone"]
        if not self.attempt.choices:
            notes.append("with the choices of the step, on which shapes depend, as constants")
        return "; ".join(notes)

    def _is_proved_by_its_own(self, group: NeuronGroup, trial: Trial) -> bool:
        """Whether the gradient in the group's own parameters is permuted, relative to its own size.

        The first layers of a deep network move its output by less than rounding does. Their gradient is as exact as any
        other, and is compared where it tells the neurons apart. Of neurons that matter to nothing it is 0.
        """
        known = {name: one for name in group.parameter_names if (one := self.gradient.get(name)) is not None}
        own = max((one.scale for one in known.values()), default=0.0)
        if not self.attempt.float64 or own == 0 or not known.keys() <= trial.errors.keys():
            return False
        if max(trial.errors[name] for name in known) > self.tolerance.ratio * own:
            return False
        order = block_derangement(group, self.generator)
        for piece in group.slices:
            values = {name: known[name].values for name in piece.names(group.n) if name in known}
            if len(values) == len(piece.names(group.n)) and max(known[name].scale for name in values) == own:
                moved = NeuronGroup(group.name, group.kind, group.n, group.block_shape, (piece,)).permute(values, order)
                return any(largest_entry(moved[name] - values[name]) > _TOLD_APART for name in values)
        return False

    def _passes(self, trial: Trial, control: float) -> bool:
        small = trial.residual <= self.tolerance.ratio * max(control, self.tolerance.floor)
        return small and trial.gradient_error <= self.tolerance.ratio

    def _control(self, group: NeuronGroup) -> float:
        """The change made by permuting one slice alone: by the gradient, or by a run where that vanishes."""
        change = 0.0
        measures: tuple[Callable[[Mapping[str, Tensor]], float], ...] = (self._slope, self._measured)
        for measure in measures:
            for piece in _strongest(group):
                alone = NeuronGroup(group.name, group.kind, group.n, group.block_shape, (piece,))
                try:
                    part = {name: self.tensors[name] for name in piece.names(group.n)}
                    moved = alone.permute(part, block_derangement(group, self.generator))
                    change = max(change, measure(moved))
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    continue
                if change > self.tolerance.floor:
                    return change
        return change

    def _slope(self, moved: Mapping[str, Tensor]) -> float:
        """The change of the output, to first order, when some tensors are replaced."""
        slope = 0.0
        for name, tensor in moved.items():
            if name in self.gradient:
                known = self.gradient[name]
                parts = in_parts(known.values, tensor, self.tensors[name])
                slope += sum(float((g * (to - at)).sum().real) for g, to, at in parts) * known.scale
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

    def _gradient_error(self, name: str, gradient: Tensor) -> float:
        """The largest error of a permuted parameter's gradient."""
        known = self.gradient.get(name)
        if known is None:
            return float("inf")
        together, scale = self._exchanged.get(name, {name}), known.scale
        expected = {name: known.values}
        moves: dict[int, dict[ParamSlice, None]] = {}
        for n in together:
            for move, pieces in self._movers.get(n, {}).items():
                moves.setdefault(move, {}).update(dict.fromkeys(pieces))
        if len(together) > 1:
            present = {n: one for n in together if (one := self.gradient.get(n)) is not None}
            expected, scale = {n: one.values * one.scale for n, one in present.items()}, 1.0
        elif moves:
            expected[name] = known.values.clone()
        for position, pieces in sorted(moves.items()):
            group, permutation = self._moved[position]
            replace(group, slices=tuple(pieces)).permute_(expected, permutation)
        return largest_difference(gradient, expected[name], scale)


def perturbed(
    tensor: Shaped[Tensor, "*shape"], generator: torch.Generator, spread: float, *, float64: bool
) -> Shaped[Tensor, "*shape"]:
    """A copy moved off its initialisation by noise of `spread` times its own spread (at least 0.15).

    Values that are not finite are replaced first: the structure is tested, not the state of training. Where nothing is
    moved, infinite ones stay: a mask, or a range in which nothing was observed yet.
    """
    if tensor.layout is not torch.strided:
        return tensor.detach().clone()
    if tensor.is_complex():
        real = perturbed(torch.view_as_real(tensor.resolve_conj()), generator, spread, float64=float64)
        return torch.view_as_complex(real)
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    copy = tensor.detach().to(torch.float64 if float64 else tensor.dtype, copy=True)
    own = float(copy.std(correction=0)) if spread > 0 and copy.numel() else math.nan
    if not math.isfinite(own):
        infinite = 0.0 if spread > 0 else math.inf
        copy.nan_to_num_(0.0, infinite, -infinite)
        own = float(copy.double().std(correction=0)) if copy.numel() else 0.0
    if spread > 0 and copy.numel():
        _add_noise(copy, generator, spread * max(own, 0.15))
    return copy


def _add_noise(tensor: Tensor, generator: torch.Generator, size: float) -> None:
    """Add normal noise; to a large tensor on the CPU over and over the same, at a prime distance and in another size.

    So no two rows or columns get the same. To draw noise for each entry takes longer there than a step does.
    """
    prime = next((p for p in _PRIMES if tensor.numel() % p), _PRIMES[0])
    if tensor.device.type != "cpu" or tensor.numel() <= prime:
        tensor.add_(torch.randn(tensor.shape, generator=generator, device=tensor.device), alpha=size)
        return
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    noise, parts = torch.randn(prime, generator=generator), tensor.permute(order).view(-1).split(prime)
    for part, factor in zip(parts, (torch.rand(len(parts), generator=generator) / 4 + 0.875).tolist(), strict=True):
        part.add_(noise[: len(part)], alpha=size * factor)


def _spread(name: str, parameters: Mapping[str, bool], attempt: Attempt) -> float:
    """Parameters and running statistics are perturbed; other buffers, and draws, are constants of the step."""
    moved = name in parameters or name.endswith(("running_mean", "running_var"))
    return attempt.spread if moved else 0.0


def _has_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _strongest(group: NeuronGroup) -> list[ParamSlice]:
    """The slices most likely to matter alone: the first that feeds and the first that reads the neurons."""
    chosen = [next((s for s in group.slices if s.role == role), None) for role in ("incoming", "outgoing")]
    return [piece for piece in chosen if piece is not None] or list(group.slices[:2])
