"""The loss of a recorded step where FSDP2 keeps parameters in shards: by forward passes, a unit gathered at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_topo._tape import CannotReplay, Tape, receives, replay, unlike_recorded
from lightning_topo._tape.names import all_names, clean_name
from lightning_topo._watch.ranks import Ranks
from lightning_topo.neurons._capture import is_unit
from lightning_topo.stability._critical_sharpness import rounding_of, rounding_within
from lightning_topo.stability._layout import is_sharded

_ROOM = 3
"""How often a unit lies in memory while it is copied: as received, as parameters, and in the copy."""


@dataclass(slots=True)
class ShardedTapeLoss:
    """This process's recorded losses of one step, at the present parameters of all: a zero-argument callable.

    The step's own kernels run, without a gradient. FSDP2 itself gathers, one unit at a time, in the order in which the
    step reads them; nothing is gathered when a call returns. Every call is a collective. The first must be at the
    parameters of the step: the tapes are accepted by it.

    Raises `CannotReplay` on all processes if a replay fails on one.
    """

    module: nn.Module
    tapes: Sequence[Tape]
    ranks: Ranks
    _plans: "list[list[_Visit]]" = field(init=False)
    is_accepted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        units, present = _units(self.module), _parameters(self.module)
        self._plans = [_plan(tape, units, present) for tape in self.tapes]

    @property
    def order(self) -> str:
        """A digest of the units that are gathered, in order: processes may call the loss only if theirs agree."""
        return hashlib.sha256(repr([[visit.path for visit in plan] for plan in self._plans]).encode()).hexdigest()

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
            gathering = _Gathering(_parameters(self.module), plan)
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
            torch.empty(_ROOM * max((visit.n_bytes for visit in visits), default=0), dtype=torch.uint8, device=device)
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
    """A unit that is gathered, and the parameters that are copied from it."""

    path: str
    unit: Any
    names: list[str]
    n_bytes: int


@dataclass(slots=True)
class _Gathering(Mapping[str, Tensor]):
    """Parameters by name while a tape is replayed: what lies in shards is gathered, unit by unit, when it is read.

    Every copy is handed out once. Buffers are left out, so that they are as recorded. It is iterated over what is whole
    anyway: to look at the rest is a collective.
    """

    present: Mapping[str, Tensor]
    plan: Sequence[_Visit]
    n_visited: int = field(default=0, init=False)
    copies: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __getitem__(self, name: str) -> Tensor:
        if not is_sharded(self.present[name]):
            return self.present[name]
        while name not in self.copies:
            if self.n_visited == len(self.plan):
                raise LookupError(f"{name} is read out of turn")
            self._visit(copying=True)
        return self.copies.pop(name)

    def __contains__(self, name: object) -> bool:
        return name in self.present

    def __iter__(self) -> Iterator[str]:
        return (name for name, p in self.present.items() if not is_sharded(p))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def finish(self) -> None:
        """Take part in what the other processes still gather."""
        self.copies.clear()
        while self.n_visited < len(self.plan):
            self._visit(copying=False)

    def _visit(self, *, copying: bool) -> None:
        visit = self.plan[self.n_visited]
        self.n_visited += 1
        visit.unit.unshard()
        try:
            if copying:
                whole = _parameters(visit.unit, visit.path)
                self.copies |= {name: _plain(whole[name], name).clone() for name in visit.names}
        finally:
            visit.unit.reshard()


def _types(tape: Tape) -> set[torch.dtype]:
    """The types of floating point that a tape computes in."""
    found = {tape.layouts[slot].dtype for call in tape.calls for slot in call.outputs if slot is not None}
    return {dtype for dtype in found if dtype.is_floating_point}


def _plain(tensor: Tensor, name: str) -> Tensor:
    if is_sharded(tensor):
        raise LookupError(f"{name} is not gathered with its unit")
    return tensor.detach()


def _plan(tape: Tape, units: Mapping[str, nn.Module], present: Mapping[str, Tensor]) -> list[_Visit]:
    """The units that a replay needs, in the order in which the tape reads from them; again where it reads anew."""
    owners = {name: _owner(name, units) for name, p in present.items() if is_sharded(p)}
    visits: list[_Visit] = []
    latest: dict[str, _Visit] = {}
    slots = dict.fromkeys(slot for call in tape.calls for slot in call.inputs) | dict.fromkeys(tape.outputs)
    for slot in slots:
        name = next((name for name in tape.names.get(slot, ()) if name in owners), None)
        if name is None:
            continue
        path = owners[name]
        if path not in latest or name in latest[path].names:
            held = [present[other] for other, owner in owners.items() if owner == path]
            n_bytes = sum(p.numel() * p.element_size() for p in held)
            latest[path] = _Visit(path, units[path], [], n_bytes)
            visits.append(latest[path])
        latest[path].names.append(name)
    return visits


def _owner(name: str, units: Mapping[str, nn.Module]) -> str:
    """The innermost unit around a parameter: it gathers it."""
    around = [path for path in units if not path or name.startswith(f"{path}.")]
    if not around:
        raise CannotReplay(f"{name} lies in shards that FSDP2 does not gather")
    return max(around, key=len)


def _units(module: nn.Module) -> dict[str, nn.Module]:
    """FSDP2's units by clean path."""
    return {clean_name(f"{path}.")[:-1]: unit for path, unit in module.named_modules() if is_unit(unit)}


def _parameters(module: nn.Module, path: str = "") -> dict[str, Tensor]:
    """The parameters of a module that lies at this path, by clean name."""
    prefix = f"{path}." if path else ""
    return {prefix + clean_name(name): p for name, p in all_names(module.named_parameters)}
