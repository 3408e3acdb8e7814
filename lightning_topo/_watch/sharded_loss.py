"""The loss of a recorded step where FSDP keeps parameters in shards: by forward passes, a unit gathered at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_topo._tape import CannotReplay, Tape, receives, replay, unlike_recorded
from lightning_topo._tape.foreign import is_functional_collective
from lightning_topo._tape.names import all_names, clean_name
from lightning_topo._watch.ranks import Ranks
from lightning_topo.neurons._units import Unit, units
from lightning_topo.stability._critical_sharpness import rounding_of, rounding_within
from lightning_topo.stability._layout import local

_ROOM = 3
"""How often a unit lies in memory while it is copied: as received, as parameters, and in the copy."""


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
    _plans: "list[list[_Visit]]" = field(init=False)
    is_accepted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        every = units(self.root)
        self._plans = [_plan(tape, every) for tape in self.tapes]

    @property
    def order(self) -> str:
        """A digest of all that is collective, in order: processes may call the loss only if theirs agree."""
        gathered = [[visit.unit.path for visit in plan] for plan in self._plans]
        sent = [[call.name for call in tape.calls if is_functional_collective(call.name)] for tape in self.tapes]
        return hashlib.sha256(repr((gathered, sent)).encode()).hexdigest()

    @property
    def rounding(self) -> float:
        """The share of the loss by which evaluations may differ by rounding alone, in the types of the steps."""
        own = (rounding_of(tape.recorded[0].dtype) for tape in self.tapes)
        return max(*own, *(rounding_within(*_types(tape)) for tape in self.tapes))

    def __call__(self) -> Float[Tensor, ""]:
        """This process's mean loss over the samples of its tapes."""
        self._agree("" if self._has_room() else "memory runs out when parameters are gathered")
        losses: list[Tensor] = []
        obstacle = ""
        for tape, plan in zip(self.tapes, self._plans, strict=True):
            gathering = _Gathering(_left_whole(self.root), plan)
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

    def _loss(self, tape: Tape, gathering: "_Gathering") -> Tensor:
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
        visits = [visit for plan in self._plans for visit in plan]
        device = self.tapes[0].recorded[0].device
        try:
            torch.empty(
                _ROOM * max((visit.unit.n_bytes for visit in visits), default=0), dtype=torch.uint8, device=device
            )
        except RuntimeError:  # also `OutOfMemoryError`
            return False
        return True


def replay_obstacle(tapes: Sequence[Tape]) -> str:
    """Why the losses of a step cannot be evaluated in shards, as far as the tapes show; empty if they may be."""
    if not tapes:
        return "the step had no loss to follow"
    refused = next((o for tape in tapes if (o := tape.obstacle or tape.gradient_obstacle)), "")
    if not refused and any(map(receives, tapes)):
        return "the loss depends on what other processes sent"
    return refused


@dataclass(slots=True)
class _Visit:
    """A unit that is gathered, and the parameters that are copied from it, in the types in which the step read them."""

    unit: Unit
    dtypes: dict[str, torch.dtype]


@dataclass(slots=True)
class _Gathering(Mapping[str, Tensor]):
    """Parameters by name while a tape is replayed: what lies in shards is gathered, unit by unit, when it is read.

    Every copy is handed out once. Buffers are left out, so that they are as recorded. It is iterated over what is whole
    anyway: to look at the rest is a collective.
    """

    whole: Mapping[str, Tensor]
    plan: Sequence[_Visit]
    n_visited: int = field(default=0, init=False)
    copies: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.whole:
            return self.whole[name]
        if name not in self:
            raise KeyError(name)
        while name not in self.copies:
            if self.n_visited == len(self.plan):
                raise LookupError(f"{name} is read out of turn")
            self._visit(copying=True)
        return self.copies.pop(name)

    def __contains__(self, name: object) -> bool:
        return name in self.whole or any(name in visit.dtypes for visit in self.plan)

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)

    def finish(self) -> None:
        """Take part in what the other processes still gather."""
        self.copies.clear()
        while self.n_visited < len(self.plan):
            self._visit(copying=False)

    def _visit(self, *, copying: bool) -> None:
        visit = self.plan[self.n_visited]
        self.n_visited += 1
        with visit.unit.gathered() as whole:
            if copying:
                self.copies |= {name: whole[name].to(dtype, copy=True) for name, dtype in visit.dtypes.items()}


def _types(tape: Tape) -> set[torch.dtype]:
    """The types of floating point that a tape computes in."""
    found = {tape.layouts[slot].dtype for call in tape.calls for slot in call.outputs if slot is not None}
    return {dtype for dtype in found if dtype.is_floating_point}


def _plan(tape: Tape, every: Sequence[Unit]) -> list[_Visit]:
    """The units that a replay needs, in the order in which the tape reads from them; again where it reads anew."""
    owners = {name: unit for unit in every for name in unit.names}
    visits: list[_Visit] = []
    latest: dict[str, _Visit] = {}
    slots = dict.fromkeys(slot for call in tape.calls for slot in call.inputs) | dict.fromkeys(tape.outputs)
    for slot in slots:
        name = next((name for name in tape.names.get(slot, ()) if name in owners), None)
        if name is None:
            continue
        unit = owners[name]
        if unit.path not in latest or name in latest[unit.path].dtypes:
            latest[unit.path] = _Visit(unit, {})
            visits.append(latest[unit.path])
        latest[unit.path].dtypes[name] = tape.layouts[slot].dtype
    return visits


@torch.no_grad()
def _left_whole(root: nn.Module) -> dict[str, Tensor]:
    """The parameters that lie in no unit, by clean name: whole ones, or the parts that tensor parallel works on."""
    owned = {name for unit in units(root) for name in unit.names}
    named = ((clean_name(name), p) for name, p in all_names(root.named_parameters))
    return {name: local(p).detach() for name, p in named if name not in owned and not hasattr(p, "_is_flat_param")}
