"""The processes of one training, and how they exchange small messages."""

import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

T = TypeVar("T")

log: logging.Logger = logging.getLogger(__name__)

_HEADER = 8  # bytes that hold a message's length
_ROOM = 1024  # bytes, at first
_MOST_WAIT = 120.0  # seconds


class ElsewhereError(RuntimeError):
    """Another process has failed, so that this one cannot go on either."""


@dataclass(frozen=True, slots=True)
class _Unsendable:
    """What a process sends that cannot send what it has to say."""

    why: str


class Ranks:
    """This process among those of a training; `alone` says there are no others. Messages go through `device`.

    Every method below `owns` but `farewell` is a collective: all processes call it, in the same order, also those with
    nothing to say. What one of them raises becomes part of the message, so that none is left waiting.

    Messages are pickled: they come from the very processes that train, by the connection that carries the gradients.
    """

    def __init__(self, device: torch.device | str = "cpu", *, alone: bool = False) -> None:
        several = not alone and dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if several else 0
        self.size: int = dist.get_world_size() if several else 1
        self.device: torch.device = torch.device(device)
        self.n_bytes: int = 0
        self._room: dict[str, int] = {}

    def owns(self, index: int) -> bool:
        """Whether the `index`-th piece of a divided work is this process's."""
        return self.owner(index) == self.rank

    def owner(self, index: int) -> int:
        """The process whose work the `index`-th piece is."""
        return index % self.size

    def all(self, topic: str, mine: T) -> list[T]:
        """Gather a message from every process, by rank: one small collective, two if a message outgrows earlier ones.

        `topic` tells apart messages of different sizes; all processes give the same. A message that cannot be pickled
        is an `ElsewhereError` on all of them.
        """
        if self.size == 1:
            return [mine]
        try:
            message = pickle.dumps(mine)
        except Exception as error:
            message = pickle.dumps(_Unsendable(_described(error)))
        room = self._room.get(topic, _ROOM)
        messages = self._gather(message, room)
        longest = max(length for length, _ in messages)
        if longest > room:
            # A half more, so that messages that grow slowly do not take two rounds each time.
            self._room[topic] = longest + longest // 2
            messages = self._gather(message, self._room[topic])
        found = [pickle.loads(text) for _, text in messages]
        for rank, theirs in enumerate(found):
            if isinstance(theirs, _Unsendable):
                raise ElsewhereError(f"{topic}: process {rank} has a message that cannot be pickled: {theirs.why}")
        return found

    def farewell(self, token: str, mine: T, *, waits: bool) -> list[T | None]:
        """Leave a last message, and take those of the other processes that have left one within two minutes.

        No collective: some may end otherwise, and never come. `token` is the same on all processes, and that of this
        farewell alone. None stands for a process without a message; without `waits` for all others.
        """
        if self.size == 1:
            return [mine]
        # Torch has no public way to the store by which the processes have found each other.
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        keys = [f"lightning_topo/{token}/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], pickle.dumps(mine))  # pyright: ignore[reportArgumentType]  # bytes are taken, too
        found: list[T | None] = [None] * self.size
        found[self.rank] = mine
        end = time.monotonic() + _MOST_WAIT
        for rank, key in enumerate(keys):
            if rank == self.rank or not waits:
                continue
            try:
                store.wait([key], timedelta(seconds=max(end - time.monotonic(), 0.1)))
                found[rank] = pickle.loads(store.get(key))
            except Exception as error:  # torch has several errors for a store that does not answer
                log.debug("process %s has left no message (%s)", rank, error)
        return found

    def first(self, topic: str, make: Callable[[], T]) -> T:
        """Run `make` on rank 0 and share its result; an error there is raised everywhere."""
        if self.size == 1:
            return make()
        error, message = None, b""
        if self.rank == 0:
            try:
                message = pickle.dumps((make(), None))
            except Exception as raised:
                error = raised
                message = pickle.dumps((None, f"{topic} failed on process 0: {_described(raised)}"))
        length = torch.tensor([len(message)], device=self.device)
        dist.broadcast(length, 0)
        text = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0:
            text.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        text = text.to(self.device)
        dist.broadcast(text, 0)
        self.n_bytes += len(text)
        made, failed = pickle.loads(text.cpu().numpy().tobytes())
        if failed is not None:
            raise error or ElsewhereError(failed)
        return made

    def together(self, topic: str, make: Callable[[], T]) -> T:
        """Run `make` on every process; if it raises on any, raise on all."""
        if self.size == 1:
            return make()
        made, error = None, None
        try:
            made = make()
        except Exception as raised:
            error = raised
        failed = self.all(topic, None if error is None else _described(error))
        if error is not None:
            raise error
        for rank, message in enumerate(failed):
            if message is not None:
                raise ElsewhereError(f"{topic} failed on process {rank}: {message}")
        return made  # pyright: ignore[reportReturnType]  # made, as it did not raise

    def _gather(self, message: bytes, room: int) -> list[tuple[int, bytes]]:
        text = len(message).to_bytes(_HEADER, "little") + message[:room].ljust(room, b"\0")
        mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self.device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        self.n_bytes += mine.numel() * (self.size - 1)
        return [_parted(bytes(theirs.cpu().numpy())) for theirs in every]

    def send(self, tensor: Any, source: int, target: int, like: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Bring a tensor from one process to another; returns it there, where `like()` makes room for it.

        Only these two take part. On the source `tensor` is what is sent.
        """
        if source == target:
            return tensor if self.rank == source else None
        if self.rank == source:
            dist.send(tensor.contiguous(), target)
        elif self.rank == target:
            received = like()
            dist.recv(received, source)
            self.n_bytes += received.numel() * received.element_size()
            return received
        return None


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _parted(text: bytes) -> tuple[int, bytes]:
    length = int.from_bytes(text[:_HEADER], "little")
    return length, text[_HEADER : _HEADER + length]
