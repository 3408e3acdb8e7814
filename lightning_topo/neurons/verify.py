"""Prove groups by permuting their neurons on the tape: the loss must not change, the gradient only be permuted."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from lightning_topo.memory import is_out_of_memory
from lightning_topo.neurons.assembly import assemble, is_carried
from lightning_topo.neurons.fewer_samples import with_fewer_samples
from lightning_topo.neurons.group import NeuronGroup, ParamSlice, block_derangement
from lightning_topo.neurons.one_run import Run, record_run
from lightning_topo.neurons.tape_coupling import Coupling, couple
from lightning_topo.tape import Tape
from lightning_topo.tape.choices import with_choices_as_constants
from lightning_topo.tape.replay import replay

log: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Thresholds of verification: of a residual against the control, of a control against the output.

    `ratio` is the largest residual of a proved group, relative to the change that permuting a single
    slice makes (the negative control). Where that control is itself below `floor` times the largest output,
    the group has too little influence to be judged.
    """

    ratio: float
    floor: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way to verify: in float64 or as recorded, how far off the parameters, with gradients or not.

    `choices` are recomputed (as which expert a token goes to), or constants where shapes depend on them.
    """

    float64: bool = True
    spread: float = 1.0
    gradients: bool = True
    choices: bool = True


ATTEMPTS = (
    Attempt(),
    Attempt(spread=0.1),
    Attempt(choices=False),
    Attempt(gradients=False),
    Attempt(float64=False),
    Attempt(float64=False, gradients=False, choices=False, spread=0.1),
)
FLOAT64 = Tolerance(ratio=1e-6, floor=1e-8)
NATIVE = Tolerance(ratio=2e-3, floor=1e-3)


def verify_groups(model: nn.Module, groups: Sequence[NeuronGroup], run: Run, *, seed: int = 0) -> list[NeuronGroup]:
    """The groups with their status: `verified`, `inert`, or reduced to `incoming_only` with the reason.

    `run(model)` is called once, and recorded. With P a random permutation of the neurons that leaves none in place, f
    the output and L the loss (or, where `run` returns no scalar, a fixed random combination of the outputs),

        residual = max |f(P theta) - f(theta)| / max |f|
        control  = the same with P applied to one slice of the group only
        gradient = max |grad L(P theta) - P grad L(theta)| / max |grad L|

    at theta = perturbed parameters, since norms of ones and biases of zeros hide mistakes. A group is verified
    where residual and gradient are far below the control. It is inert where the output hardly depends on
    it. Otherwise its slices do not make up exchangeable neurons, and only what feeds them is kept.

    All groups are permuted at once: two gradients in all if all is well, and a bisection where it is not. Where a tape
    cannot run in float64, its own precision and a coarser tolerance are used; where it has no gradient, the output
    alone is compared, and `reason` says so. The model is not changed.
    """
    if all(group.status == "incoming_only" for group in groups):
        return list(groups)
    tape = record_run(model, run)
    if tape.obstacle:
        return verify_on_tapes([tape], groups, seed=seed)
    coupling = couple([tape])
    found = assemble(coupling.trace, tape.trainable) if tape.draws else []
    groups = [with_carried(group, found) for group in groups]
    return verify_on_tapes([tape], groups, seed=seed, cheap=fewer_samples([tape], coupling))


def fewer_samples(tapes: Sequence[Tape], coupling: Coupling) -> list[Tape]:
    """The tapes on some of their samples, where that can be done."""
    pairs = zip(tapes, coupling.tensors, strict=True)
    return [with_fewer_samples(tape, coupling.trace, tensors) for tape, tensors in pairs]


def verify_on_tapes(
    tapes: Sequence[Tape], groups: Sequence[NeuronGroup], *, seed: int = 0, cheap: Sequence[Tape] = ()
) -> list[NeuronGroup]:
    """The groups with their status, as `verify_groups`, by the replays of tapes; what was drawn is permuted along.

    A group must be a symmetry of every tape's loss. `cheap` are the same tapes on fewer samples, tried first. What
    seems inert there may only be left out by those samples, as an expert to which none goes: all samples decide.
    """
    usable = [tape for tape in tapes if not tape.obstacle and tape.outputs]
    judged: dict[int, NeuronGroup] = {}
    undecided, reason = (
        list(range(len(groups))),
        next((tape.obstacle for tape in tapes if tape.obstacle), "nothing was returned to compare"),
    )
    ways = [(cheap, ATTEMPTS[0])] if cheap and any(a is not b for a, b in zip(cheap, tapes, strict=True)) else []
    for chosen, attempt in [*ways, *((usable, attempt) for attempt in ATTEMPTS)] if usable else ():
        try:
            chosen_groups = [groups[i] for i in undecided]
            verdicts = Bench(chosen, chosen_groups, seed, attempt).judge(chosen_groups)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.info("no verification by %s (%s)", attempt, reason)
            continue
        judged.update(zip(undecided, verdicts, strict=True))
        undecided = [i for i in undecided if chosen is cheap and judged[i].status == "inert"]
        if not undecided:
            break
    reason = f"the model did not run on perturbed parameters ({reason})"
    for i, group in enumerate(groups):
        judged.setdefault(i, group if group.status == "incoming_only" else group.with_status("unverified", reason))
    return [without_carried(_noted(judged[i], tapes)) for i in range(len(groups))]


def with_carried(group: NeuronGroup, found: Sequence[NeuronGroup]) -> NeuronGroup:
    """A group with the recorded draws that are permuted with it: those of the found group that shares most with it."""
    alike = [
        (len(set(group.slices) & set(other.slices)), other)
        for other in found
        if (other.n, other.block_shape) == (group.n, group.block_shape)
    ]
    shared, other = max(alike, key=lambda item: item[0], default=(0, group))
    if not shared:
        return group
    drawn = tuple(piece for piece in other.slices if is_carried(piece.param))
    return replace(group, slices=(*group.slices, *drawn))


def without_carried(group: NeuronGroup) -> NeuronGroup:
    """The group's part in parameters and buffers alone."""
    return replace(group, slices=tuple(piece for piece in group.slices if not is_carried(piece.param)))


def _noted(group: NeuronGroup, tapes: Sequence[Tape]) -> NeuronGroup:
    """The verdict, with what it leans on and what contradicts it."""
    unlike = frozenset[str]().union(*(tape.unlike for tape in tapes))
    if group.status in ("verified", "inert") and not unlike.isdisjoint(group.params):
        reason = next(tape.gradient_obstacle for tape in tapes if tape.unlike)
        return group.incoming_only(f"the gradient of the loss is not that of the recorded calls: {reason}")
    reads = {read.operator for tape in tapes for read in tape.host_reads if not read.params.isdisjoint(group.params)}
    if group.status == "verified" and reads:
        note = f"values read by the host ({', '.join(sorted(reads))}) are taken as constants"
        return group.with_status("verified", f"{group.reason}; {note}".removeprefix("; "))
    return group


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one permutation: relative change of the output, and largest relative error of the gradient."""

    residual: float
    gradient_error: float
    failure: str = ""


class Bench:
    """Tapes at perturbed copies of their parameters, where permutations of groups are tried."""

    def __init__(self, tapes: Sequence[Tape], groups: Sequence[NeuronGroup], seed: int, attempt: Attempt) -> None:
        self.tapes = tapes if attempt.choices else [with_choices_as_constants(tape) for tape in tapes]
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
            trainable |= tape.trainable
        wanted = {name for name, is_trained in trainable.items() if is_trained}
        for group in groups:  # a frozen one needs the gradient of one slice, or a run of its own to see that it matters
            strongest = [piece.names(group.n) for piece in _strongest(group)]
            if wanted.isdisjoint(name for names in strongest for name in names):
                wanted.update(*strongest[:1])
        self.differentiated = [name for name, value in values.items() if name in wanted and _has_gradient(value)]
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {
            name: perturbed(t, generator, _spread(name, trainable, attempt), float64=attempt.float64)
            for name, t in values.items()
        }
        for name, tensor in self.tensors.items():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.3)
        self.generator: torch.Generator = generator
        self.reference, self.gradient = self.evaluate(self.tensors)
        largest = [float(g.abs().max()) for g in self.gradient.values() if g.numel()]
        self.gradient_scale: float = max(largest, default=0.0) or 1.0
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

    def evaluate(self, tensors: Mapping[str, Tensor]) -> tuple[Float64[Tensor, " outputs"], dict[str, Tensor]]:
        """Outputs, and the gradient of the loss in the trained parameters, and in a slice of each frozen group."""
        if not self.attempt.gradients:
            return self.output(tensors), {}
        leaves = {
            name: t.detach().requires_grad_() if name in self.differentiated else t for name, t in tensors.items()
        }
        with torch.enable_grad():
            output = self._flatten(leaves)
            if not output.requires_grad:
                return output.detach(), {}
            weights = torch.randn(len(output), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
            loss = output.sum() if len(output) == 1 else output @ weights.to(output.device)
            gradients = torch.autograd.grad(loss, [leaves[name] for name in self.differentiated], allow_unused=True)
        named = zip(self.differentiated, gradients, strict=True)
        return output.detach(), {name: g.detach() for name, g in named if g is not None}

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
        trial = self._trial([groups[i] for i in cases])
        if len(cases) == 1 or all(self._passes(trial, controls[i]) for i in cases):
            trials.update(dict.fromkeys(cases, trial))
            return
        middle = len(cases) // 2
        self._bisect(groups, cases[:middle], controls, trials)
        self._bisect(groups, cases[middle:], controls, trials)

    def _trial(self, groups: Sequence[NeuronGroup]) -> Trial:
        """Permute groups at once: the change of the output, and the error of the gradient."""
        try:
            tensors, expected = dict(self.tensors), dict(self.gradient)
            for group in groups:
                permutation = block_derangement(group, self.generator)
                tensors = group.permute(tensors, permutation)
                expected = group.permute(expected, permutation)
            output, gradient = self.evaluate(tensors)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return Trial(float("inf"), float("inf"), next(iter(str(error).splitlines()), type(error).__name__))
        return Trial(self._change(output), self._gradient_error(gradient, expected))

    def _single(self, group: NeuronGroup) -> NeuronGroup:
        if group.status == "incoming_only":
            return group
        return group.with_status("verified", "a single neuron has nothing to be exchanged with")

    def _verdict(self, group: NeuronGroup, trial: Trial, control: float) -> NeuronGroup:
        if self._passes(trial, control):
            if control > self.tolerance.floor:
                return group.with_status("verified", self._caveat())
            return group.with_status("inert", f"the output hardly depends on it (control {control:.1e})")
        if trial.failure:
            return group.incoming_only(f"the step does not run with its neurons permuted ({trial.failure})")
        if trial.residual > self.tolerance.ratio * max(control, self.tolerance.floor):
            return group.incoming_only(
                f"not complete: permuting its neurons changes the output by {trial.residual:.1e} of its size "
                f"(a single slice: {control:.1e})"
            )
        return group.incoming_only(
            f"permuting its neurons changes the gradient of the loss by {trial.gradient_error:.1e} of it"
        )

    def _caveat(self) -> str:
        """What the proof goes without."""
        notes = [] if self.gradient else ["by the output alone"]
        if not self.attempt.choices:
            notes.append("with the choices of the step, on which shapes depend, as constants")
        return "; ".join(notes)

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
        slope = sum(
            float((self.gradient[name] * (tensor - self.tensors[name])).sum().real)
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
    if tensor.layout is not torch.strided:
        return tensor.detach()
    if tensor.is_complex():
        real = perturbed(torch.view_as_real(tensor.resolve_conj()), generator, spread, float64=float64)
        return torch.view_as_complex(real)
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    copy = tensor.detach().to(torch.float64 if float64 else tensor.dtype, copy=True).nan_to_num_(0.0, 0.0, 0.0)
    if spread > 0 and copy.numel():
        own = max(float(copy.double().std(correction=0)), 0.15)
        copy += spread * own * torch.randn(copy.shape, generator=generator).to(copy)
    return copy


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
