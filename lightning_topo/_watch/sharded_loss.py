"""The loss of a recorded step where parameters lie in shards: by forward passes, one whole parameter at a time."""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_topo._tape import Tape, tape_loss
from lightning_topo._tape.names import named_tensors
from lightning_topo.stability._layout import is_sharded

log: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardedTapeLoss:
    """The loss of this process's recorded step at the present parameters of all: a zero-argument callable, no gradient.

    Every call is a collective: all processes gather the parameters in the order in which the step reads them. It is NaN
    on a process where the step cannot be replayed; the others do not wait for it.
    """

    module: nn.Module
    tape: Tape

    @property
    def order(self) -> str:
        """A digest of the parameters that are gathered, in order: processes may call the loss only if theirs agree."""
        return hashlib.sha256(repr(_order(self.tape, named_tensors(self.module))).encode()).hexdigest()

    def __call__(self) -> Tensor:
        named = named_tensors(self.module)
        gathered = _Gathered(named, _order(self.tape, named))
        with torch.no_grad():
            try:
                return tape_loss(self.tape, gathered)
            except Exception as error:
                log.info("the recorded step cannot be replayed: %s", error)
                return self.tape.recorded[0].new_full((), math.nan)
            finally:
                gathered.finish()


@dataclass(slots=True)
class _Gathered(Mapping[str, Tensor]):
    """Tensors by name, each gathered from all processes when it is asked for, in a given order.

    It is iterated over those at hand alone: to look at another is a collective.
    """

    named: Mapping[str, Tensor]
    order: list[str]
    n_gathered: int = field(default=0, init=False)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.named[name]
        if not is_sharded(tensor):
            return tensor
        if self.order[self.n_gathered : self.n_gathered + 1] != [name]:
            raise LookupError(f"{name} is read out of turn")
        self.n_gathered += 1
        return tensor.full_tensor()

    def __contains__(self, name: object) -> bool:
        return name in self.named

    def __iter__(self) -> Iterator[str]:
        return (name for name, tensor in self.named.items() if not is_sharded(tensor))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def finish(self) -> None:
        """Take part in what the other processes still gather."""
        for name in self.order[self.n_gathered :]:
            self[name]


def _order(tape: Tape, named: Mapping[str, Tensor]) -> list[str]:
    """The sharded tensors that a replay reads, in its order: once for each slot."""
    slots = dict.fromkeys(slot for call in tape.calls for slot in call.inputs) | dict.fromkeys(tape.outputs)
    names = (next((name for name in tape.names.get(slot, ()) if name in named), None) for slot in slots)
    return [name for name in names if name is not None and is_sharded(named[name])]
