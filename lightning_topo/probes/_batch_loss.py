"""The loss on the probe batch, whole or in parts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """The batch loss as a zero-argument callable: a call returns `evaluate(batch)`.

    Args:
        evaluate: Computes the loss of a batch.
        batch: A tensor, or nested lists, tuples and dicts with tensors, whose first dimension counts the samples.

    >>> import torch
    >>> loss = BatchLoss(lambda batch: batch.mean(), torch.arange(5.0))
    >>> loss(), [(weight, part()) for weight, part in loss.parts(3)]
    (tensor(2.), [(0.6, tensor(1.)), (0.4, tensor(3.5000))])
    """

    evaluate: Callable[[Any], Tensor]
    batch: Any

    def __call__(self) -> Tensor:
        """The loss on the whole batch."""
        return self.evaluate(self.batch)

    @property
    def n_samples(self) -> int:
        """The number of samples: the length of the batch's first tensor that has a dimension, 0 if there is none."""
        return _n_samples(self.batch)

    def parts(self, size: int) -> tuple[tuple[float, Callable[[], Tensor]], ...]:
        """Split the batch into consecutive parts of at most `size` samples; return a pair (weight, loss) for each.

        The weight is the part's fraction of the samples, the loss a zero-argument callable. If the loss is a mean over
        samples, the weighted sum of the parts' losses is the loss of the whole batch. If samples interact (BatchNorm in
        training, a contrastive loss), it is not. Tensors and lists as long as the batch's first tensor are cut; all
        else is passed whole to each part.

        Raises `ValueError` if `size` is below 1 or no tensor of the batch has a dimension.
        """
        if size < 1:
            raise ValueError(f"expected parts of at least 1 sample, got {size}")
        n = self.n_samples
        if n == 0:
            raise ValueError("expected a batch with a tensor whose first dimension counts samples, found none")
        return tuple(
            ((min(first + size, n) - first) / n, partial(self.evaluate, _cut(self.batch, n, first, first + size)))
            for first in range(0, n, size)
        )


def _n_samples(batch: Any) -> int:
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 0)


def _cut(batch: Any, n: int, first: int, last: int) -> Any:
    """Samples `first` to `last` of a batch of n."""

    def is_column(value: Any) -> bool:
        return isinstance(value, list) and len(value) == n and not any(isinstance(leaf, Tensor) for leaf in value)

    def cut(value: Any) -> Any:
        counts = (isinstance(value, Tensor) and value.ndim > 0 and len(value) == n) or is_column(value)
        return value[first:last] if counts else value

    return tree_map(cut, batch, is_leaf=is_column)
