"""Recorded steps in parts of their samples: the same loss, in the memory of one part."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_topo._memory import is_out_of_memory
from lightning_topo._tape import Call, CannotReplay, Slot, Tape, replay
from lightning_topo.neurons._sample_axes import GUESSES, CannotCut, SampleAxes
from lightning_topo.neurons._tape_coupling import couple

log: logging.Logger = logging.getLogger(__name__)

WeightedTape = tuple[float, Tape]

_ROUNDING = 128
"""So many times the rounding of one number may the parts' loss differ from the whole one's."""
_SPREAD = 0.3
"""How far the parameters are moved for the comparison, against their own size."""


@dataclass(frozen=True, slots=True)
class SampleCuts:
    """Cuts tapes into parts of their samples, and remembers how.

    A cut holds only where it gives the recorded loss: the parts' losses, each by its share of what the loss was divided
    by (its samples, or its unmasked entries), have to sum up to the loss of the whole tape, at perturbed parameters,
    up to rounding. Batch norm in training, a contrastive loss or one that balances experts does not: such a tape stays
    whole.
    """

    _known: dict[tuple[int, int], tuple[Tape, tuple[WeightedTape, ...]]] = field(default_factory=dict)
    _axes: list["SampleAxes"] = field(default_factory=list)

    def __call__(
        self, tape: Tape, size: int, named: Mapping[str, Tensor], precision: torch.dtype | None
    ) -> tuple[WeightedTape, ...]:
        """Weights and parts of at most `size` samples each; the tape itself where it cannot be cut."""
        if size >= tape.n_samples:
            return ((1.0, tape),)
        key = id(tape), size
        if key not in self._known:
            try:
                self._known[key] = tape, self._cut(tape, size, named, precision)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                log.info("a recorded step stays whole: %s", error)
                self._known[key] = tape, ((1.0, tape),)
        return self._known[key][1]

    def forget_all_but(self, tapes: Sequence[Tape]) -> None:
        """Let go of the parts of other tapes."""
        kept = {id(tape) for tape in tapes}
        for key in [key for key in self._known if key[0] not in kept]:
            del self._known[key]

    def _cut(
        self, tape: Tape, size: int, named: Mapping[str, Tensor], precision: torch.dtype | None
    ) -> tuple[WeightedTape, ...]:
        axes = next((known for known in self._axes if known.fits(tape)), None)
        if axes is None:
            axes = _axes_of(tape)
            self._axes[:] = [axes, *self._axes[:3]]
        n_parts = -(-tape.n_samples // size)
        bounds = [tape.n_samples * k // n_parts for k in range(n_parts + 1)]
        for guess in GUESSES:
            try:
                parts = [axes.part(tape, start, stop, guess) for start, stop in pairwise(bounds)]
                with torch.no_grad():
                    weights = _weights(tape, parts, partial(replay, named=_perturbed(tape, named), precision=precision))
            except (CannotCut, CannotReplay):
                continue
            if weights is not None:
                return tuple((weight, part) for weight, part in zip(weights, parts, strict=True) if weight)
        return ((1.0, tape),)


def _axes_of(tape: Tape) -> SampleAxes:
    coupling = couple([tape])
    return SampleAxes.of(tape, coupling.trace, coupling.tensors[0])


def _weights(tape: Tape, parts: Sequence[Tape], run: Callable[[Tape], Sequence[Tensor]]) -> list[float] | None:
    """Weights with which the parts' losses sum up to the tape's; None where there are none."""
    divisor = _divisor(tape)
    outputs = tape.outputs[:1] if divisor is None else (*tape.outputs[:1], divisor)
    losses, divisors = [], []
    for each in (tape, *parts):
        loss, *by = (float(value) for value in run(each.replaced(outputs=outputs)))
        losses.append(loss)
        divisors += by
    shares = [part.n_samples / tape.n_samples for part in parts]
    ways = [shares, [1.0] * len(parts)]
    if divisors and divisors[0]:
        ways.insert(0, [each / divisors[0] for each in divisors[1:]])
    tolerance = _ROUNDING * torch.finfo(torch.float32).eps
    for weights in ways:
        # A part of masked samples alone has no loss: 0 / 0.
        terms = [weight * loss for weight, loss in zip(weights, losses[1:], strict=True) if weight]
        if abs(sum(terms) - losses[0]) <= tolerance * max(abs(losses[0]), sum(map(abs, terms))):
            return weights
    return None


_SCALES = frozenset({"mul", "div", "_to_copy", "view", "reshape", "_unsafe_view", "alias", "clone", "detach", "neg"})


def _divisor(tape: Tape) -> int | None:
    """The slot of the number that a masked mean was divided by; None where none is found, or it has a gradient."""
    makers = {slot: call for call in tape.calls for slot in call.outputs if slot is not None}
    slot = tape.outputs[0]
    while (call := makers.get(slot)) is not None:
        name = call.name.removeprefix("aten::")
        if name in ("nll_loss_forward", "nll_loss2d_forward"):
            named = [
                value.index for value in (call.argument("target"), call.argument("weight")) if isinstance(value, Slot)
            ]
            return call.outputs[1] if not any(_is_trained(tape, makers, other) for other in named) else None
        if name == "div" and isinstance(call.args[1], Slot):
            return None if _is_trained(tape, makers, call.args[1].index) else call.args[1].index
        if name not in _SCALES or not isinstance(call.args[0], Slot):
            return None
        slot = call.args[0].index
    return None


def _is_trained(tape: Tape, makers: Mapping[int, Call], slot: int) -> bool:
    """Whether a slot's tensor depends on a parameter."""
    ahead, seen = [slot], set()
    while ahead:
        here = ahead.pop()
        if here in seen:
            continue
        seen.add(here)
        if any(tape.trainable.get(name) for name in tape.names.get(here, ())):
            return True
        ahead += makers[here].inputs if here in makers else ()
    return False


def _perturbed(tape: Tape, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that `named` holds, with parameters moved: where they are zero, samples may seem not to meet."""
    return dict(_moved(tape, named))


def _moved(tape: Tape, named: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    done: dict[int, Tensor] = {}
    for k, (name, tensor) in enumerate(named.items()):
        if not tape.trainable.get(name) or not tensor.is_floating_point():
            yield name, tensor
            continue
        if id(tensor) not in done:
            size = float(tensor.detach().float().square().mean().sqrt()) if tensor.numel() else 0.0
            fan_in = tensor[0].numel() if tensor.dim() > 1 and len(tensor) else tensor.numel()
            generator = torch.Generator(tensor.device).manual_seed(k)
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
            done[id(tensor)] = noise.mul_(_SPREAD * (size or max(fan_in, 1) ** -0.5)).add_(tensor.detach())
        yield name, done[id(tensor)]
