"""Parameters by name while a recorded step is replayed: those in shards are gathered, a unit at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_topo._tape import Tape
from lightning_topo._tape.names import all_names, clean_name
from lightning_topo.neurons._units import Unit, units
from lightning_topo.stability._layout import local

_ROOM = 3
"""How often a unit lies in memory while it is copied: as received, as parameters, and in the copy."""


@dataclass(slots=True)
class Visit:
    """A unit that is gathered, and the parameters that are copied from it, in the types in which the step read them."""

    unit: Unit
    dtypes: dict[str, torch.dtype]


@dataclass(slots=True)
class Gathering(Mapping[str, Tensor]):
    """Parameters by name while a tape is replayed: what lies in shards is gathered, unit by unit, when it is read.

    Every copy is handed out once. Buffers are left out, so that they are as recorded. It is iterated over what is whole
    anyway: to look at the rest is a collective.
    """

    whole: Mapping[str, Tensor]
    plan: Sequence[Visit]
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


def plan(tape: Tape, every: Sequence[Unit]) -> list[Visit]:
    """The units that a replay needs, in the order in which the tape reads from them; again where it reads anew."""
    owners = {name: unit for unit in every for name in unit.names}
    visits: list[Visit] = []
    latest: dict[str, Visit] = {}
    slots = dict.fromkeys(slot for call in tape.calls for slot in call.inputs) | dict.fromkeys(tape.outputs)
    for slot in slots:
        name = next((name for name in tape.names.get(slot, ()) if name in owners), None)
        if name is None:
            continue
        unit = owners[name]
        if unit.path not in latest or name in latest[unit.path].dtypes:
            latest[unit.path] = Visit(unit, {})
            visits.append(latest[unit.path])
        latest[unit.path].dtypes[name] = tape.layouts[slot].dtype
    return visits


@torch.no_grad()
def left_whole(root: nn.Module) -> dict[str, Tensor]:
    """The parameters that lie in no unit, by clean name: whole ones, or the parts that tensor parallel works on."""
    owned = {name for unit in units(root) for name in unit.names}
    named = ((clean_name(name), p) for name, p in all_names(root.named_parameters))
    return {name: local(p).detach() for name, p in named if name not in owned and not hasattr(p, "_is_flat_param")}


def has_room(unit: Unit, device: torch.device) -> bool:
    """Whether a unit can be gathered and copied on this device."""
    try:
        torch.empty(_ROOM * unit.n_bytes, dtype=torch.uint8, device=device)
    except RuntimeError:  # also `OutOfMemoryError`
        return False
    return True


def floating_types(tape: Tape) -> set[torch.dtype]:
    """The types of floating point that a tape computes in."""
    found = {tape.layouts[slot].dtype for call in tape.calls for slot in call.outputs if slot is not None}
    return {dtype for dtype in found if dtype.is_floating_point}
