"""Nearest neighbours outside a growing component, without the matrix of all distances."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry._distances import Rows, binary_scale, mean_point, squared_distances

_TILE_ROWS = 256
_TILE_COLUMNS = 1024
_NEIGHBOURS = 16


class NeighbourLists:
    """Each point's few nearest points outside its component, renewed when all of them have been absorbed.

    Whatever is outside the component and not listed is at least as far as the last one listed. A point whose
    list is used up is renewed only where this bound leaves it a chance to be the nearest of its component.
    Memory is O(n) beside the cloud itself.
    """

    def __init__(self, points: Float[Tensor, "n d"]) -> None:
        self.points = points
        self.scale: float = binary_scale(points)
        self.origin: Tensor = mean_point(points)
        n, length = len(points), min(_NEIGHBOURS, len(points) - 1)
        self.labels: Tensor = torch.arange(n, device=points.device)
        self.squares: Tensor = torch.zeros((n, length), dtype=self.origin.dtype, device=points.device)
        self.indices: Tensor = self.labels[:, None].repeat(1, length)

    def nearest_outside(self, labels: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Squared distance and index of each point's nearest one with another label.

        The distance is inf for points that cannot be the nearest of their component.
        """
        count = int(labels.max()) + 1
        nearest, neighbours = self._listed(labels)
        least = least_of_each(nearest, labels, count)
        bound = self.squares[:, -1]
        open_rows = (nearest.isinf() & (bound < least[labels])).nonzero().flatten()
        for rows in open_rows[bound[open_rows].argsort()].split(_TILE_ROWS):
            rows = rows[self.squares[rows, -1] < least[labels[rows]]]
            if len(rows) == 0:
                continue
            self._renew(rows, labels)
            nearest[rows], neighbours[rows] = self.squares[rows, 0], self.indices[rows, 0]
            least.scatter_reduce_(0, labels[rows], nearest[rows], "amin")
        return nearest, neighbours

    def _listed(self, labels: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """The nearest of the listed points that are still outside; inf where none is."""
        inside = labels[self.indices] == labels[:, None]
        nearest, position = self.squares.masked_fill(inside, torch.inf).min(dim=1)
        return nearest, self.indices.gather(1, position[:, None]).flatten()

    def _renew(self, rows: Int[Tensor, " m"], labels: Int[Tensor, " n"]) -> None:
        """List the nearest points outside the components of these rows."""
        length = self.squares.shape[1]
        a = Rows.around(self.points[rows], self.origin, self.scale)
        squares = self.squares.new_empty((len(rows), 0))
        indices = rows.new_empty((len(rows), 0))
        for start in range(0, len(self.points), _TILE_COLUMNS):
            columns = slice(start, start + _TILE_COLUMNS)
            tile = squared_distances(a, Rows.around(self.points[columns], self.origin, self.scale))
            tile.masked_fill_(labels[rows, None] == labels[columns], torch.inf)
            found, position = tile.topk(min(length, tile.shape[1]), dim=1, largest=False)
            squares, indices = torch.cat([squares, found], 1), torch.cat([indices, start + position], 1)
            squares, position = squares.topk(min(length, squares.shape[1]), dim=1, largest=False)
            indices = indices.gather(1, position)
        self.squares[rows], self.indices[rows] = squares, indices


def least_of_each(values: Float[Tensor, " n"], labels: Int[Tensor, " n"], count: int) -> Float[Tensor, " c"]:
    """The least value in each of `count` components."""
    return values.new_full((count,), torch.inf).scatter_reduce_(0, labels, values, "amin")
