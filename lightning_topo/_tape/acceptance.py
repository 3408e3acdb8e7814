"""Whether a tape is what the step computed: its replay must give the step's own loss and gradient."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_topo._memory import in_parts, largest_difference, largest_entry
from lightning_topo._tape.collectives import receives
from lightning_topo._tape.draws import generators_kept
from lightning_topo._tape.memory_map import DERIVATIVES
from lightning_topo._tape.program import Tape
from lightning_topo._tape.replay import HALF, CannotReplay, replay

Gradients = Mapping[str, Tensor | None]


def accepted(
    tape: Tape,
    gradients: Gradients | None = None,
    *,
    average: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    multiple: float | None = None,
) -> Tape:
    """The tape, with an obstacle if the loss or gradient of its replay differs from the step's.

    `gradients` are those of the step by name, up to one common positive factor (loss scale, accumulation); None, or a
    parameter that is missing or None, is not compared. Of that factor `multiple` is known to be the loss's own, None
    where that is not known; the rest is that of hooks, the tape's `gradient_factor`. If processes average gradients,
    `average` averages the replayed ones as the strategy does. The replay differentiates what a user's autograd function
    computes, so a tape with one is refused unless `gradients` confirm that.
    """
    if tape.obstacle or any(output.is_meta for output in tape.recorded):
        return tape
    judged = _judged(tape, gradients, average, multiple)
    if (judged.obstacle or judged.gradient_obstacle) and runs_compiled_code(tape):
        return tape.replaced(obstacle="the step runs code that torch.compile has compiled")
    return judged


def _judged(
    tape: Tape,
    gradients: Gradients | None,
    average: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None,
    multiple: float | None,
) -> Tape:
    try:
        with generators_kept(tape):  # also from the backward pass
            differentiate = gradients is not None and not tape.gradient_obstacle
            outputs, replayed = _evaluated(tape, differentiate=differentiate)
    except CannotReplay as error:
        return tape.replaced(obstacle=str(error))
    except torch.OutOfMemoryError:
        return tape.replaced(obstacle="memory runs out when the step is replayed")
    tolerance = _tolerance(tape)
    if not tape.gradient_obstacle and (difference := unlike_recorded(tape, outputs)):
        return tape.replaced(obstacle=difference)
    if tape.gradient_obstacle or (receives(tape) and average is None):
        return tape
    if gradients is None:
        if _doubtful(tape):
            return tape.replaced(
                gradient_obstacle=f"{_functions(tape)} may define a gradient other than its derivative"
            )
        return tape
    replayed = average(replayed) if average is not None else replayed
    errors, factor = gradient_errors(replayed, gradients)
    unlike = frozenset(name for name, error in errors.items() if not error <= 10 * tolerance)
    if not unlike:
        return _with_factor(tape, factor, multiple, tolerance)
    cause = ""
    if tape.functions:
        cause = f": {_functions(tape)} defines a gradient other than its derivative, or a hook changes it"
    worst = max(unlike, key=lambda name: errors[name])
    return tape.replaced(
        unlike=unlike,
        gradient_obstacle=f"the replay's gradient differs from the step's in {len(unlike)} parameters "
        f"(in {worst} by {errors[worst]:.1e} of the largest entry){cause}",
    )


def _with_factor(tape: Tape, factor: float | None, multiple: float | None, tolerance: float) -> Tape:
    """The tape with the factor by which hooks have scaled its gradient, as far as that is known.

    An autograd function may be where a factor comes from. Then it is not known to be constant: the backward pass of
    x^2 that leaves out 2x gives a multiple of the derivative, too.
    """
    if factor is None or not multiple:
        return tape
    factor /= multiple
    if _doubtful(tape) and not abs(factor - 1.0) <= 10 * tolerance:
        return tape.replaced(
            gradient_obstacle=f"the step's gradient is {factor:.3g} times the replay's: "
            f"{_functions(tape)} may define a gradient other than its derivative"
        )
    return tape.replaced(gradient_factor=1.0 if abs(factor - 1.0) <= tolerance else factor)


def unlike_recorded(tape: Tape, outputs: Sequence[Tensor]) -> str:
    """How the outputs of a replay at the recorded values differ from the step's by more than rounding; else empty."""
    for output, recorded in zip(outputs, tape.recorded, strict=True):
        error = _relative_error(output, recorded)
        if not error <= _tolerance(tape):
            return f"the replay's loss differs from the step's (by {error:.1e} of it)"
    return ""


def runs_compiled_code(tape: Tape) -> bool:
    """Whether the step has called an autograd function of the kind that torch makes of a compiled graph."""
    return any(function.startswith("CompiledFunction") for function in tape.functions.values())


def replayed_gradient(tape: Tape) -> dict[str, Tensor]:
    """The gradient of the recorded (scaled) loss where the parameters stood, by name.

    Raises `CannotReplay`.
    """
    return _evaluated(tape, differentiate=True)[1]


def _evaluated(tape: Tape, *, differentiate: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs and gradients at the recorded values, by the step's own kernels."""
    if not differentiate:
        with torch.no_grad():
            return replay(tape, {}, formulas=False), {}
    leaves = {
        slot: tape.values[slot].detach().requires_grad_()
        for slot, names in tape.names.items()
        if tape.trainable.get(names[0], False)
    }
    with torch.enable_grad():
        outputs = replay(tape.replaced(values={**tape.values, **leaves}), {}, formulas=False)
        total = combined(outputs)
        if not total.requires_grad:
            return [out.detach() for out in outputs], {}
        try:
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise CannotReplay(f"the replay has no gradient ({next(iter(str(error).splitlines()), '')})") from error
    gradients: dict[str, Tensor] = {}
    for slot, gradient in zip(leaves, found, strict=True):
        if gradient is not None:
            name = tape.names[slot][0]
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return [out.detach() for out in outputs], gradients


def gradient_errors(replayed: Mapping[str, Tensor], gradients: Gradients) -> tuple[dict[str, float], float | None]:
    """max |g - c r| by parameter, in parts of the largest |g| of all, and c, the positive factor that fits best.

    c is None without a gradient that could tell it.

    >>> gradient_errors({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, 8.0]), "unused": None})
    ({'w': 0.0}, 4.0)
    """
    given = {name: gradient for name, gradient in gradients.items() if gradient is not None and gradient.numel()}
    sums = {name: _sums(replayed.get(name), gradient) for name, gradient in given.items()}
    largest = max((one[2] for one in sums.values()), default=0.0)
    errors = {name: 0.0 for name, gradient in gradients.items() if gradient is not None}
    if largest == 0.0 or largest != largest:
        return errors, None
    factor = _common_factor([(dot, square) for dot, square, _ in sums.values()])
    for name, gradient in given.items():
        rest = sums[name][2]
        if name in replayed:
            rest = largest_difference(_real(gradient), _real(replayed[name]), factor)
        errors[name] = rest / largest
    return errors, factor


def _sums(replayed: Tensor | None, given: Tensor) -> tuple[float, float, float]:
    """The products replayed . given and replayed . replayed, and the largest entry of what is given."""
    g = _real(given)
    if replayed is None:
        return 0.0, 0.0, largest_entry(g)
    dot, square, wide = 0.0, 0.0, _wide_dtype(g)
    for part, known in in_parts(g, _real(replayed)):
        dot += float((known * part).sum(dtype=wide))
        square += float((known * known).sum(dtype=wide))
    return dot, square, largest_entry(g)


def _common_factor(sums: list[tuple[float, float]]) -> float:
    """The factor that most of the gradient agrees on: the median over parameters of the best one for each.

    A parameter whose gradient is altogether another must not spoil the rest.
    """
    factors = sorted((dot / square, square) for dot, square in sums if square > 0)
    total, passed = sum(square for _, square in factors), 0.0
    for factor, square in factors:
        passed += square
        if passed >= total / 2:
            return factor if factor > 0 else 0.0
    return 0.0


def combined(outputs: Sequence[Tensor]) -> Tensor:
    """One number to differentiate: the loss itself, or a fixed random combination of several outputs."""
    if len(outputs) == 1 and outputs[0].numel() == 1:
        return outputs[0].sum()
    generator, terms = torch.Generator().manual_seed(0), []
    for output in outputs:
        if output.requires_grad:
            real = torch.view_as_real(output) if output.is_complex() else output
            terms.append((real * torch.randn(real.shape, generator=generator).to(real)).sum())
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.device.type != "mps" else torch.float32


def _real(tensor: Tensor) -> Tensor:
    """A tensor's real entries, in its own precision or in float32: one that is large is not to be copied."""
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _wide(tensor: Tensor) -> Tensor:
    return _real(tensor).to(_wide_dtype(tensor))


def _relative_error(output: Tensor, recorded: Tensor) -> float:
    if output.shape != recorded.shape:
        return float("inf")
    if not output.numel():
        return 0.0
    same = (output == recorded) | ((output != output) & (recorded != recorded))
    if bool(same.all()):
        return 0.0
    scale = float(_wide(recorded).abs().max())
    return float((_wide(output) - _wide(recorded)).abs().max()) / max(scale, 1e-30)


def _tolerance(tape: Tape) -> float:
    """Rounding of the least precise computation on the tape; kernels may sum in another order."""
    dtypes = {tape.layouts[slot].dtype for call in tape.calls for slot in call.outputs if slot is not None}
    if dtypes & set(HALF):
        return 1e-2
    return 1e-4 if dtypes & {torch.float32, torch.complex64} else 1e-8


def _doubtful(tape: Tape) -> bool:
    """Whether the step has called an autograd function whose backward pass may not be the derivative."""
    return not DERIVATIVES.issuperset(tape.functions.values())


def _functions(tape: Tape) -> str:
    return f"the autograd function {', '.join(sorted(set(tape.functions.values())))}"
