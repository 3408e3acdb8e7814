"""Tell by trial whether an operator works entry by entry, alike at every position."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_topo._protection import kept_random_state

_SIZES = (4, 3, 5, 2, 3, 2, 2, 2)
_LARGER = tuple(2 * size for size in _SIZES)
_MOST_ENTRIES = 128
"""So many entries of an input are changed one at a time; of a larger one, these are spread evenly."""
_KNOWN: dict[tuple[Any, ...], bool] = {}


def is_elementwise(func: Any, arguments: Mapping[str, Any], outputs: list[Tensor]) -> bool:
    """Whether the operator maps each entry by itself, all positions by the same function.

    The operator is tried on small random inputs in place of the call's own tensors: reordering the inputs along
    an axis must reorder the outputs alike, and changing one entry of an input may change only the entries of the
    outputs that stand at its position. The answer is kept per overload, number of dimensions and settings.
    Operators that draw random numbers, or write to their arguments (but for torch's own in-place forms), are
    never tried, nor are those with lists of tensors. In place of tensors without memory, the trial is on the CPU.
    It is made at two sizes: to shuffle 3 channels in 3 groups leaves all where they are.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    listed = sum(isinstance(leaf, Tensor) for leaf in tree_leaves(list(arguments.values()))) > len(tensors)
    shape = outputs[0].shape if outputs else torch.Size()
    if listed or not tensors or not 0 < len(shape) <= len(_SIZES) or not _may_be_tried(func):
        return False
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors.values()):
        return False
    if any(out.shape != shape for out in outputs) or not all(_broadcasts(t.shape, shape) for t in tensors.values()):
        return False
    pattern = tuple((name, tuple(size == 1 for size in t.shape), t.dtype) for name, t in tensors.items())
    settings = tuple(repr(value) for value in arguments.values() if not isinstance(value, (Tensor, float)))
    key = (func, shape.numel() == 1, pattern, settings)
    if key not in _KNOWN:
        try:
            with torch.no_grad(), kept_random_state():
                _KNOWN[key] = all(_Trial(func, arguments, shape, sizes).passes() for sizes in (_SIZES, _LARGER))
        except Exception:  # an operator that does not take such inputs has not shown anything
            _KNOWN[key] = False
    return _KNOWN[key]


def _may_be_tried(func: Any) -> bool:
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    written = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return not func._schema.is_mutable or (func.namespace == "aten" and written == list(func._schema.arguments[:1]))


def _broadcasts(shape: torch.Size, out: torch.Size) -> bool:
    if len(shape) > len(out):
        return False
    return all(size in (1, wanted) for size, wanted in zip(shape[::-1], out[::-1], strict=False))


class _Trial:
    """Small random inputs of the call's pattern, and what the operator makes of them."""

    def __init__(self, func: Any, arguments: Mapping[str, Any], shape: torch.Size, sizes: Sequence[int]) -> None:
        self.func = func
        self.arguments = arguments
        small = [1 if size == 1 else sizes[dim] for dim, size in enumerate(shape)]
        self.shape = torch.Size(small)
        generator = torch.Generator().manual_seed(0)
        self.inputs: dict[str, Tensor] = {}
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                offset = len(shape) - value.dim()
                its = [1 if size == 1 else small[offset + dim] for dim, size in enumerate(value.shape)]
                self.inputs[name] = self._random(its, value, generator)
        self.generator = generator
        self.reference = self._outputs(self.inputs)

    def _random(self, sizes: list[int], like: Tensor, generator: torch.Generator) -> Tensor:
        place = {"dtype": like.dtype, "device": "cpu" if like.is_meta else like.device}
        if like.dtype == torch.bool or not (like.is_floating_point() or like.is_complex()):
            return torch.randint(0, 2, sizes, generator=generator).to(**place)
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(**place)

    def _outputs(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        result = self.func(**{**self.arguments, **{name: tensor.clone() for name, tensor in inputs.items()}})
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def passes(self) -> bool:
        """Whether nothing contradicts, and the outputs vary so that something could have."""
        if any(out.shape != self.shape for out in self.reference):
            return False
        first = self.reference[0]
        if first.numel() > 1 and (bool((first == first.flatten()[0]).all()) or bool(first.isnan().all())):
            return False
        return all(self._commutes(dim) for dim in range(len(self.shape))) and all(
            self._stays_in_place(name) for name in self.inputs
        )

    def _commutes(self, dim: int) -> bool:
        """Reordering along one axis of the outputs."""
        order = torch.arange(self.shape[dim]).roll(1)

        def reordered(tensor: Tensor) -> Tensor:
            axis = dim - len(self.shape)
            if tensor.dim() < -axis or tensor.shape[axis] == 1:
                return tensor
            return tensor.index_select(axis, order.to(tensor.device))

        moved = self._outputs({name: reordered(tensor) for name, tensor in self.inputs.items()})
        return all(_equal(there, reordered(here)).all() for here, there in zip(self.reference, moved, strict=True))

    def _stays_in_place(self, name: str) -> bool:
        """Changing single entries of one input."""
        count = self.inputs[name].numel()
        for entry in range(0, count, -(-count // _MOST_ENTRIES)):
            changed, where = self.inputs[name].clone(), torch.zeros(self.inputs[name].shape, dtype=torch.bool)
            where.view(-1)[entry] = True
            where = where.to(changed.device)
            other = changed[where].logical_not() if changed.dtype == torch.bool else changed[where] * 3 + 1
            changed[where] = other.to(changed.dtype)
            moved = self._outputs({**self.inputs, name: changed})
            elsewhere = ~where.broadcast_to(self.shape)
            if not all(_equal(a, b)[elsewhere].all() for a, b in zip(self.reference, moved, strict=True)):
                return False
        return True


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Equal up to rounding, entry by entry: vectorised kernels may round by position."""
    return torch.isclose(a, b, rtol=1e-3 if a.dtype in (torch.float16, torch.bfloat16) else 1e-5, equal_nan=True)
