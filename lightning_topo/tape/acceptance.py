"""Whether a tape is what the step computed: its replay must give the step's own loss and gradient."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_topo.tape.collectives import RECORDED
from lightning_topo.tape.program import Tape
from lightning_topo.tape.replay import HALF, CannotReplay, replay

Gradients = Mapping[str, Tensor | None]


def accepted(
    tape: Tape,
    gradients: Gradients | None = None,
    *,
    average: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> Tape:
    """The tape, with an obstacle where its replay gives another loss or another gradient than the step had.

    `gradients` are those of the step by name, up to one common positive factor (loss scale, accumulation); None, or a
    parameter that is missing or None, is not compared. Where processes share gradients, `average` does to the
    replayed ones what the strategy has done to the step's. A tape through a user's autograd function is taken for
    the derivative of what it computes, and so is refused without gradients that say so.
    """
    if tape.obstacle or any(output.is_meta for output in tape.recorded):
        return tape
    try:
        outputs, replayed = _evaluated(tape, differentiate=gradients is not None)
    except CannotReplay as error:
        return tape.replaced(obstacle=str(error))
    except torch.OutOfMemoryError:
        return tape.replaced(obstacle="memory runs out when the step is replayed")
    tolerance = _tolerance(tape)
    for output, recorded in zip(outputs, tape.recorded, strict=True):
        error = _relative_error(output, recorded)
        if not error <= tolerance and not tape.gradient_obstacle:
            return tape.replaced(obstacle=f"the replay gives another loss than the step (by {error:.1e} of it)")
    sends = any(call.operator in RECORDED for call in tape.calls)
    if tape.gradient_obstacle or (sends and average is None):
        return tape
    if gradients is None:
        if tape.functions:
            return tape.replaced(gradient_obstacle=f"{_functions(tape)} may have another gradient than its values have")
        return tape
    replayed = average(replayed) if average is not None else replayed
    errors = gradient_errors(replayed, gradients)
    unlike = frozenset(name for name, error in errors.items() if not error <= 10 * tolerance)
    if not unlike:
        return tape
    cause = f": {_functions(tape)} has another gradient than its values have" if tape.functions else ""
    worst = max(unlike, key=lambda name: errors[name])
    return tape.replaced(
        unlike=unlike,
        gradient_obstacle=f"the replay gives another gradient than the step in {len(unlike)} parameters "
        f"(in {worst} by {errors[worst]:.1e} of the largest entry){cause}",
    )


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


def gradient_errors(replayed: Mapping[str, Tensor], gradients: Gradients) -> dict[str, float]:
    """max |g - c r| by parameter, in parts of the largest |g| of all, with c the positive factor that fits best.

    >>> gradient_errors({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, 8.0]), "unused": None})
    {'w': 0.0}
    """
    pairs = {
        name: (_wide(replayed[name]) if name in replayed else torch.zeros_like(_wide(given)), _wide(given))
        for name, given in gradients.items()
        if given is not None
    }
    largest = max((float(g.abs().max()) for _, g in pairs.values() if g.numel()), default=0.0)
    if largest == 0.0 or largest != largest:
        return dict.fromkeys(pairs, 0.0)
    factor = _common_factor(list(pairs.values()))
    return {name: float((g - factor * r).abs().max()) / largest if g.numel() else 0.0 for name, (r, g) in pairs.items()}


def _common_factor(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The factor that most of the gradient agrees on: the median over parameters of the best one for each.

    A parameter whose gradient is altogether another must not spoil the rest.
    """
    factors = sorted((float((r * g).sum()) / square, square) for r, g in pairs if (square := float((r * r).sum())) > 0)
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


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    wide = torch.float64 if tensor.device.type != "mps" else torch.float32
    return torch.view_as_real(tensor).to(wide) if tensor.is_complex() else tensor.to(wide)


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


def _functions(tape: Tape) -> str:
    return f"the autograd function {', '.join(sorted(set(tape.functions.values())))}"
