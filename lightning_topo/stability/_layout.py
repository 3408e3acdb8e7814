"""Flat vectors of all parameters' entries: whole on every process, or each process's own part of them.

Where parameters lie in shards, no process ever holds a whole vector. A process's part has the entries of its shards;
entries that r processes hold are divided by sqrt(r), so that the inner product of two vectors is the sum over the
processes of the inner products of their parts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How flat vectors of the entries of `params` lie on the processes.

    In shards all methods that return a number, `total` and `mean` are collectives: every process calls them. `shares`
    holds for each parameter 1 / sqrt(r) where r processes hold each of its entries; None where every process
    has all parameters whole, and there is nothing to share. `places` tells flat shards of a parameter apart, which do
    not show it themselves.
    """

    params: tuple[Tensor, ...]
    shares: tuple[float, ...] | None = None
    places: tuple[int, ...] | None = None

    @staticmethod
    def of(params: Iterable[Tensor], *, flat_copies: int | None = None) -> "Layout":
        """The layout of these parameters.

        Flat shards, as FSDP1 has them, do not show what they are: `flat_copies` says on how many processes each lies.

        >>> Layout.of([torch.ones(2, 3)]).shares is None
        True
        """
        params = tuple(params)
        if flat_copies is not None:
            return Layout(params, (1 / math.sqrt(flat_copies),) * len(params))
        if not any(is_sharded(p) for p in params):
            return Layout(params)
        world = torch.distributed.get_world_size()
        return Layout(params, tuple(math.sqrt(n_shards(p) / world) for p in params))

    @staticmethod
    def flat(parts: Iterable[Tensor], n_shards: Iterable[int], places: Iterable[int]) -> "Layout":
        """The layout of plain tensors that are one part each of a parameter, out of `n_shards` on so many processes."""
        world = torch.distributed.get_world_size()
        return Layout(tuple(parts), tuple(math.sqrt(n / world) for n in n_shards), tuple(places))

    def flatten(self, tensors: Iterable[Tensor]) -> Float[Tensor, " p"]:
        """The entries of tensors shaped as the parameters, in one vector, in at least float32."""
        if self.shares is None:
            return flatten(tensors)
        pieces = zip(tensors, self.params, self.shares, strict=True)
        return torch.cat([local(t, p).reshape(-1).to(_wide(t.dtype)).mul(share) for t, p, share in pieces])

    def add(self, total: Float[Tensor, " p"], pieces: Iterable[Tensor | None], weight: float = 1.0) -> None:
        """Add weight times the tensors' entries to a flat vector, in place; None adds nothing."""
        shares = self.shares or (1.0,) * len(self.params)
        parts = total.split([local(p).numel() for p in self.params])
        for part, piece, p, share in zip(parts, pieces, self.params, shares, strict=True):
            if piece is not None:
                part.add_(local(piece, p).reshape(-1), alpha=weight * share)

    def shaped(self, vector: Float[Tensor, " p"]) -> list[Tensor]:
        """A flat vector in pieces of the shape, type and placement of the parameters.

        >>> layout = Layout.of([torch.zeros(1), torch.zeros(2, 1)])
        >>> [piece.tolist() for piece in layout.shaped(torch.arange(3.0))]
        [[0.0], [[1.0], [2.0]]]
        """
        pieces = vector.split([local(p).numel() for p in self.params])
        if self.shares is None:
            return [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, self.params, strict=True)]
        together = zip(pieces, self.params, self.shares, strict=True)
        return [_placed(piece.div(share).view(local(p).shape).to(p.dtype), p) for piece, p, share in together]

    def spread(self, values: Sequence[float | Tensor]) -> Float[Tensor, " p"]:
        """One value per parameter, or one per entry, as a vector with one per entry: a diagonal operator's entries."""
        return torch.cat(
            [
                torch.as_tensor(
                    local(value, p) if isinstance(value, Tensor) else value, dtype=_wide(p.dtype), device=p.device
                )
                .expand(local(p).shape)
                .reshape(-1)
                for value, p in zip(values, self.params, strict=True)
            ]
        )

    def noise(self, like: Float[Tensor, " p"], seed: int) -> Float[Tensor, " p"]:
        """Normal random numbers, for an entry the same on all processes; in shards one parameter at a time."""
        generator = torch.Generator(like.device).manual_seed(seed)
        if self.shares is None:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        pieces = []
        for k, place in enumerate(self.places or ()):
            generator.manual_seed(hash((seed, k, place)) % 2**63)
            p, share = self.params[k], self.shares[k]
            drawn = torch.randn(p.numel(), generator=generator, dtype=like.dtype, device=like.device)
            pieces.append(drawn.mul_(share))
        for p, share in zip(self.params, self.shares, strict=True) if self.places is None else ():
            whole = torch.randn(p.shape, generator=generator, dtype=like.dtype, device=like.device)
            pieces.append(local(sharded_as(whole, p)).reshape(-1).mul(share))
        return torch.cat(pieces)

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes of each entry, on the device of `value`."""
        return self._reduced(value, "SUM")

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes of each entry, as of the losses of their batches."""
        return value if self.shares is None else self.total(value) / torch.distributed.get_world_size()

    def dot(self, one: Float[Tensor, " p"], other: Float[Tensor, " p"]) -> float:
        """The inner product of two flat vectors."""
        return float(self.total(one @ other))

    def norm(self, vector: Float[Tensor, " p"]) -> float:
        """The length of a flat vector."""
        return float(vector.norm()) if self.shares is None else math.sqrt(self.dot(vector, vector))

    def anywhere(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return flag if self.shares is None else self._most(float(flag)) > 0.0

    def extremes(self, least: float, largest: float) -> tuple[float, float]:
        """The least and the largest over all processes."""
        return (least, largest) if self.shares is None else (-self._most(-least), self._most(largest))

    def n_entries(self, vector: Float[Tensor, " p"]) -> int:
        """The number of entries of a flat vector, over all processes."""
        if self.places is not None and self.shares is not None:
            held = zip(self.params, self.shares, strict=True)
            return round(float(self.total(torch.tensor(sum(p.numel() * s * s for p, s in held), dtype=torch.float64))))
        return vector.numel() if self.shares is None else sum(p.numel() for p in self.params)

    @property
    def n_local(self) -> int:
        """The number of entries of this process's part."""
        return sum(local(p).numel() for p in self.params)

    def longest(self, vector: Float[Tensor, " p"]) -> int:
        """The number of entries of the longest part that a process has of a flat vector."""
        return vector.numel() if self.shares is None else int(self._most(float(vector.numel())))

    def _device(self) -> torch.device:
        """Where processes can reduce: NCCL on the device alone, where offloaded shards are not."""
        device = local(self.params[0]).device
        on_host = device.type == "cpu" and torch.distributed.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_host else device

    def _most(self, value: float) -> float:
        return float(self._reduced(torch.tensor(value, dtype=torch.float64), "MAX"))

    def _reduced(self, value: Tensor, operation: str) -> Tensor:
        if self.shares is None:
            return value
        there = value.to(self._device())
        there = there.clone() if there is value else there
        torch.distributed.all_reduce(there, op=getattr(torch.distributed.ReduceOp, operation))
        return there.to(value.device)


WHOLE = Layout(())
"""The layout of vectors that every process has whole, whatever their parameters."""


def flatten(tensors: Iterable[Tensor]) -> Float[Tensor, " p"]:
    """Put the entries of all tensors, one after the other, in one vector of at least float32.

    >>> flatten([torch.ones(1, 2), torch.zeros(2, dtype=torch.bfloat16)])
    tensor([1., 1., 0., 0.])
    """
    return torch.cat([dense(t).reshape(-1).to(_wide(t.dtype)) for t in tensors])


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself or, where it is sparse, with its zeros: as of embeddings' gradients."""
    return tensor.to_dense() if tensor.is_sparse else tensor


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """This process's shard of a tensor, placed as `like`; a tensor that is whole is itself."""
    if not is_sharded(tensor):
        return dense(tensor)
    placed = tensor
    if is_sharded(like) and tuple(tensor.placements) != tuple(like.placements):
        placed = tensor.redistribute(placements=like.placements)
    return placed.to_local()


class Sharded(Protocol):
    """What is used of a DTensor, whose import not every build of torch allows."""

    device_mesh: Any
    placements: Any
    shape: torch.Size

    def stride(self) -> tuple[int, ...]: ...

    def to_local(self) -> Tensor: ...

    def redistribute(self, *, placements: Any) -> "Sharded": ...


def is_sharded(tensor: Any) -> TypeGuard[Sharded]:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "placements")


def n_shards(p: Tensor) -> int:
    """In how many parts a parameter's entries lie, each on as many processes as the others."""
    if not is_sharded(p):
        return 1
    sizes = p.device_mesh.shape
    return math.prod(size for size, placement in zip(sizes, p.placements, strict=True) if not placement.is_replicate())


def _placed(piece: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, as part of one that is placed as `like`."""
    if not is_sharded(like):
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def sharded_as(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, known to every process, placed as `like`; nothing travels."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    copies = DTensor.from_local(whole, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
    return copies.redistribute(placements=like.placements)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
