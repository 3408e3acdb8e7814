"""What a step computes from gradients without a graph: updates and perturbations of weights, written by hand."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class GradientTrail:
    """Knows gradients of parameters again, and what was computed from them.

    It is no part of a loss: afterwards the parameters stand elsewhere, as after an optimizer's step. Memory is known by
    weak references, so that none is kept, and none that is freed and used again is taken for it.

    >>> w = torch.ones(2, requires_grad=True)
    >>> w.square().sum().backward()
    >>> trail = GradientTrail()
    >>> trail.leads_to([w.grad], [w]), trail.leads_to([w], [w])
    (True, False)
    >>> direction = w.grad.sign()
    >>> trail.follow([direction])
    >>> trail.leads_to([direction], [w])
    True
    """

    def __init__(self) -> None:
        self._derived: dict[int, StorageWeakRef] = {}

    def leads_to(self, read: Iterable[Tensor], parameters: Iterable[Tensor]) -> bool:
        """Whether one of the tensors read is a gradient of these parameters, or was computed from one."""
        ids, storages = set[int](), set[int]()
        for tensor in read:
            ids.add(id(tensor))
            if self._derived and tensor.layout is torch.strided:
                storages.add(tensor.untyped_storage()._cdata)
        if not storages.isdisjoint(self._derived):
            return True
        gradients = (tensor.grad for tensor in parameters if tensor.is_leaf)
        return any(id(gradient) in ids for gradient in gradients if gradient is not None)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Say that these were computed from gradients."""
        for tensor in tensors:
            if tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                self._derived[storage._cdata] = StorageWeakRef(storage)
