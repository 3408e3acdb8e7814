"""A mapping whose keys are tensors as objects, whatever their values are."""

from typing import Generic, TypeVar, overload

from torch import Tensor

V = TypeVar("V")
D = TypeVar("D")


class TensorMap(Generic[V]):
    """A dict by the identity of tensors, which it keeps alive: the id of one that is gone may be that of another."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: dict[int, tuple[Tensor, V]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._items

    def __getitem__(self, tensor: Tensor) -> V:
        return self._items[id(tensor)][1]

    def __setitem__(self, tensor: Tensor, value: V) -> None:
        self._items[id(tensor)] = (tensor, value)

    @overload
    def get(self, tensor: Tensor) -> V | None: ...
    @overload
    def get(self, tensor: Tensor, default: D) -> V | D: ...
    def get(self, tensor: Tensor, default: object = None) -> object:
        """The tensor's value, or `default`."""
        item = self._items.get(id(tensor))
        return default if item is None else item[1]

    def pop(self, tensor: Tensor) -> V | None:
        """Forget the tensor, and return its value, or None where it has none."""
        item = self._items.pop(id(tensor), None)
        return None if item is None else item[1]
