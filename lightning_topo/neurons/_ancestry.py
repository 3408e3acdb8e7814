"""Which activations were computed from which, to tell a skip connection from other sums."""

from collections.abc import Sequence

from torch import Tensor

from lightning_topo.neurons._tensor_map import TensorMap


class Ancestry:
    """A graph of activations, numbered as they are made."""

    def __init__(self) -> None:
        self._nodes = TensorMap[int]()
        self._parents: list[tuple[int, ...]] = []
        self._depths: list[int] = []  # contractions on the longest path to each node

    def add(self, tensor: Tensor, sources: Sequence[Tensor], *, contracts: bool = False) -> None:
        """Note that a tensor is computed from others, by a contraction with a weight or otherwise."""
        parents = tuple(self._nodes[source] for source in sources if source in self._nodes)
        self._nodes[tensor] = len(self._parents)
        self._parents.append(parents)
        self._depths.append(max((self._depths[node] for node in parents), default=0) + contracts)

    def adopt(self, tensor: Tensor, other: Tensor) -> None:
        """Take a tensor for another."""
        if other in self._nodes:
            self._nodes[tensor] = self._nodes[other]

    def is_skip(self, left: Tensor, right: Tensor) -> bool:
        """Whether one of two added activations was computed from the other by way of a weight."""
        if left not in self._nodes or right not in self._nodes:
            return False
        early, late = sorted((self._nodes[left], self._nodes[right]))
        if self._depths[late] <= self._depths[early]:
            return False
        stack, seen = [late], set[int]()
        while stack:
            node = stack.pop()
            if node == early:
                return True
            if node > early and node not in seen:
                seen.add(node)
                stack += self._parents[node]
        return False
