"""The loss of a recorded step where FSDP keeps parameters in shards: a unit gathered at a time."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_topo._tape import CannotReplay, Tape, receives, replay, unlike_recorded
from lightning_topo._tape.foreign import is_functional_collective
from lightning_topo._watch.gathering import Gathering, Visit, floating_types, has_room, left_whole, plan
from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.sharded_gradient import ShardedGradient, functions_of
from lightning_topo.neurons._units import units
from lightning_topo.probes import ProbeUnavailable
from lightning_topo.stability._critical_sharpness import rounding_of, rounding_within


@dataclass(slots=True)
class ShardedTapeLoss:
    """This process's recorded losses of one step, at the present parameters of all: a zero-argument callable.

    The step's own kernels run, without a gradient. FSDP itself gathers, one unit at a time, in the order in which the
    step reads them; nothing is gathered when a call returns. Every call is a collective. The first must be at the
    parameters of the step: the tapes are accepted by it.

    `root` is the module or, under FSDP1, its outermost wrapper.

    Raises `CannotReplay` on all processes if a replay fails on one.
    """

    root: nn.Module
    tapes: Sequence[Tape]
    ranks: Ranks
    _plans: list[list[Visit]] = field(init=False)
    is_accepted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        every = units(self.root)
        self._plans = [plan(tape, every) for tape in self.tapes]

    @property
    def order(self) -> str:
        """A digest of all that is collective, in order: processes may call the loss only if theirs agree."""
        gathered = [[visit.unit.path for visit in visits] for visits in self._plans]
        sent = [[call.name for call in tape.calls if is_functional_collective(call.name)] for tape in self.tapes]
        return hashlib.sha256(repr((gathered, sent)).encode()).hexdigest()

    @property
    def rounding(self) -> float:
        """The share of the loss by which evaluations may differ by rounding alone, in the types of the steps."""
        own = (rounding_of(tape.recorded[0].dtype) for tape in self.tapes)
        return max(*own, *(rounding_within(*floating_types(tape)) for tape in self.tapes))

    def __call__(self) -> Float[Tensor, ""]:
        """This process's mean loss over the samples of its tapes."""
        self._agree("" if self._has_room() else "memory runs out when parameters are gathered")
        losses: list[Tensor] = []
        obstacle = ""
        for tape, visits in zip(self.tapes, self._plans, strict=True):
            gathering = Gathering(left_whole(self.root), visits)
            try:
                losses.append(self._loss(tape, gathering))
            except Exception as error:
                obstacle = obstacle or str(error) or type(error).__name__
            finally:
                gathering.finish()
        self._agree(obstacle)
        self.is_accepted = True
        samples = sum(tape.n_samples for tape in self.tapes)
        shares = [tape.n_samples / samples for tape in self.tapes]
        return torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()

    def gradient(self) -> ShardedGradient:
        """The gradient of the mean of all processes' losses, in shards: a collective, and so is each call of it.

        Raises `ProbeUnavailable` if the step calls autograd functions: a replay differentiates what they compute, and
        the gradients of shards are not compared.
        """
        if not self.is_accepted:
            raise CannotReplay("the step was not accepted at its own parameters")
        if found := next(filter(None, self.ranks.all("functions", functions_of(self.tapes))), ""):
            raise ProbeUnavailable(
                f"Hessian products in shards need a step without functions of its own: {found} may define a gradient "
                "other than its derivative.",
                "Under FSDP2 give the probe a loss: Sharpness(loss_fn=lambda module, batch: ...). "
                "`critical_sharpness` needs none.",
            )
        return ShardedGradient(self.root, self.tapes, self.ranks)

    def _loss(self, tape: Tape, gathering: Gathering) -> Tensor:
        with torch.no_grad():
            [loss] = replay(tape, gathering, formulas=False)
        if not self.is_accepted and (difference := unlike_recorded(tape, [loss])):
            raise CannotReplay(difference)
        return loss.reshape(()).float() / tape.scale

    def _agree(self, obstacle: str) -> None:
        """Raise on all processes what hinders one."""
        if found := next(filter(None, self.ranks.all("the loss of shards", obstacle)), ""):
            raise CannotReplay(found)

    def _has_room(self) -> bool:
        """Whether the largest unit can be gathered and copied: a process that breaks off there is waited for."""
        found = [visit.unit for visits in self._plans for visit in visits]
        device = self.tapes[0].recorded[0].device
        return not found or has_room(max(found, key=lambda unit: unit.n_bytes), device)


def replay_obstacle(tapes: Sequence[Tape]) -> str:
    """Why the losses of a step cannot be evaluated in shards, as far as the tapes show; empty if they may be."""
    if not tapes:
        return "the step had no loss to follow"
    refused = next((o for tape in tapes if (o := tape.obstacle or tape.gradient_obstacle)), "")
    if not refused and any(map(receives, tapes)):
        return "the loss depends on what other processes sent"
    return refused
