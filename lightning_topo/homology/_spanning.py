"""The minimum spanning tree of a matrix, in NumPy alone: also the worker without torch computes it."""

import numpy as np
from jaxtyping import Float


def prim(weights: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " m"]:
    """The sorted n - 1 weights of the minimum spanning tree: it grows by the nearest outside point, n - 1 times.

    >>> prim(np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 3.0], [4.0, 3.0, 0.0]]))
    array([1., 3.])
    """
    n = len(weights)
    if n < 2:
        return np.empty(0, dtype=weights.dtype)
    joined = np.empty(n - 1, dtype=weights.dtype)
    nearest = weights[0].copy()
    in_tree = np.zeros_like(nearest)
    in_tree[0] = np.inf
    outside = np.empty_like(nearest)
    for k in range(n - 1):
        np.add(nearest, in_tree, out=outside)
        new = outside.argmin()
        joined[k] = outside[new]
        in_tree[new] = np.inf
        np.minimum(nearest, weights[new], out=nearest)
    joined.sort()
    return joined
