"""The gradient of a recorded step where parameters lie in shards: replayed, a unit gathered at a time.

The whole gradient of a parameter is averaged over the processes as soon as it is there, and each keeps its own part. So
no process ever holds all parameters, or all of a gradient.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_topo._tape import CannotReplay, Tape, replay
from lightning_topo._tape.draws import generators_kept
from lightning_topo._tape.memory_map import DERIVATIVES
from lightning_topo._tape.names import all_names, clean_name
from lightning_topo._watch.gathering import floating_types, has_room, left_whole, plan
from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.sharded_reading import Reading, raised
from lightning_topo.neurons._capture import FLAT, sharding
from lightning_topo.neurons._units import Part, Unit, units
from lightning_topo.stability._hessian import seeded
from lightning_topo.stability._layout import Layout, dense, local


class ShardedGradient:
    """The loss of one step's tapes and its gradient at the present parameters, in shards: a zero-argument callable.

    `layout` says how the flat gradient lies on the processes, `parameters` of which of the optimizers' tensors it has
    parts, and `eps` how coarse the computation is. What the step computed in half precision is computed in single.

    Every call is a collective. Before each gathering and each average the processes tell each other whether they go on:
    one that fails stops all, and none waits.

    Raises `CannotReplay` on all processes if one fails, or if their steps read different parameters, and
    `FloatingPointError` on all if a loss is not finite.
    """

    def __init__(self, root: nn.Module, tapes: Sequence[Tape], ranks: Ranks) -> None:
        self._root, self._tapes, self._ranks = root, tapes, ranks
        self._units = units(root)
        self._owners = {name: unit for unit in self._units for name in unit.names}
        parts = _trained_parts(root, self._units)
        self.parameters: tuple[Tensor, ...] = tuple(part.parameter for part in parts)
        self._left = {clean_name(name): p for name, p in all_names(root.named_parameters)}
        self.layout: Layout = _layout(parts, is_flat=sharding(root) in FLAT)
        self._index = {id(p): k for k, p in enumerate(self.parameters)}
        lengths = [local(part.entries).numel() for part in parts]
        self._begins = [sum(lengths[:k]) for k in range(len(lengths))]
        types = {part.entries.dtype for part in parts}
        types |= {raised(dtype) for tape in tapes for dtype in floating_types(tape)}
        eps = max(torch.finfo(dtype).eps for dtype in types)
        self.eps: float = self.layout.extremes(eps, eps)[1]
        self._seed = torch.initial_seed()

    def __call__(self) -> tuple[float, Float[Tensor, " p"]]:
        """The mean of the processes' losses, and this process's part of its gradient."""
        total = torch.zeros_like(self.layout.flatten(p.detach() for p in self.layout.params))
        samples = sum(tape.n_samples for tape in self._tapes)
        loss = 0.0
        try:
            with seeded(self._seed, self.layout.params), torch.autograd.set_multithreading_enabled(False):
                self._meet("begin")
                for tape in self._tapes:
                    loss += self._differentiated(tape, tape.n_samples / samples, total)
            self._meet("end")
        except (_Stopped, FloatingPointError):
            raise
        except Exception as error:
            self._meet("failed", str(error) or type(error).__name__)
            raise
        return float(self.layout.mean(torch.tensor(loss, dtype=torch.float64))), total

    def _differentiated(self, tape: Tape, share: float, total: Tensor) -> float:
        """Add a tape's gradient to `total`; return its loss. Both count by `share`."""
        trained = {name for names in tape.names.values() if any(map(tape.trainable.get, names)) for name in names}
        is_half = any(raised(dtype) is not dtype for dtype in floating_types(tape))

        def receive(name: str, gradient: Tensor) -> None:
            self._take(name, gradient, total)

        reading = Reading(
            left_whole(self._root), plan(tape, self._units), frozenset(trained), self._meet_to_gather, receive
        )
        with generators_kept(tape):
            with torch.enable_grad(), reading.saving():
                [loss] = replay(tape, reading, precision=torch.float32 if is_half else None, formulas=is_half)
                loss = loss.reshape(()) * (share / tape.scale)
            value = float(loss.detach())
            if self._meet("loss", "" if loss.requires_grad else "the loss depends on no trained parameter", value):
                raise FloatingPointError("expected a finite loss, got NaN or infinity on one of the processes")
            torch.autograd.grad(loss, [reading.anchor], allow_unused=True)
        return value

    @torch.no_grad()
    def _take(self, name: str, gradient: Tensor, total: Tensor) -> None:
        """Average one parameter's whole gradient, and add this process's part of it."""
        gradient = dense(gradient)
        whole = torch.empty(gradient.shape, dtype=total.dtype, device=gradient.device).copy_(gradient)
        self._meet(f"average {name}")
        if self._ranks.size > 1:
            torch.distributed.all_reduce(whole)
            whole /= self._ranks.size
        unit = self._owners.get(name)
        parameter, at, entries = (self._left[name], 0, whole.reshape(-1)) if unit is None else unit.cut(name, whole)
        k = self._index.get(id(parameter))
        if k is not None and len(entries):
            share = 1.0 if self.layout.shares is None else self.layout.shares[k]
            total.narrow(0, self._begins[k] + at, len(entries)).add_(entries.to(total.device), alpha=share)

    def _meet_to_gather(self, unit: Unit) -> None:
        device = self._tapes[0].recorded[0].device
        self._meet(
            f"gather {unit.path}", "" if has_room(unit, device) else "memory runs out when parameters are gathered"
        )

    def _meet(self, what: str, obstacle: str = "", value: float = 0.0) -> bool:
        """Go on together: raise on all processes what hinders one. Return whether one's value is not finite."""
        said = self._ranks.all("the gradient in shards", (what, obstacle, value - value == 0.0))
        if found := next((obstacle for _, obstacle, _ in said if obstacle), ""):
            raise _Stopped(found)
        if len({what for what, _, _ in said}) > 1:
            raise _Stopped("the processes' steps read different parameters, or in another order")
        return not all(is_finite for _, _, is_finite in said)


class _Stopped(CannotReplay):
    """All processes know that they do not go on."""


def _trained_parts(root: nn.Module, every: Sequence[Unit]) -> list[Part]:
    """This process's parts of the parameters that are trained, in the module's order."""
    known = {id(part.parameter): part for unit in every for part in unit.parts()}
    trained = {id(p): p for p in root.parameters() if p.requires_grad}
    return [known.get(one, Part(p, p, 1, 0)) for one, p in trained.items()]


def _layout(parts: Sequence[Part], *, is_flat: bool) -> Layout:
    entries = [part.entries for part in parts]
    if not is_flat:  # there they show it
        return Layout.of(entries)
    return Layout.flat(entries, [part.n_shards for part in parts], [part.place for part in parts])


def functions_of(tapes: Sequence[Tape]) -> str:
    """The autograd functions that tapes call, but for those whose backward pass is known to be the derivative."""
    found = {name for tape in tapes for name in tape.functions.values()}
    return ", ".join(sorted(found - DERIVATIVES - {"CheckpointFunction"}))
