"""Places of views, held against the numbers that the views show."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo.neurons._operator_call import operator_call
from lightning_topo.neurons._places import contains, overlap, places, whole


class Followed(TorchDispatchMode):
    """The place of every view of a tensor that is made in the block."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.found = {id(base): (base, whole(base))}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        call = operator_call(func, args, kwargs or {}, result)
        _, place = self.found[id(call.inputs[0])]
        found = places(call, place)
        self.found |= {
            id(out): (out, at) for out, at in zip(call.outputs, found or [None] * len(call.outputs), strict=True)
        }
        return result


BOXES = {
    "one index": lambda x: x[1],
    "the last index of the last axis": lambda x: x[..., -1],
    "a part": lambda x: x[:, 1:3],
    "parts of parts": lambda x: x[1:, 1:][1, 1:, ::1],
    "turned": lambda x: x.permute(2, 0, 1)[1:, 1].t(),
    "with a new axis": lambda x: x[:, None, 2:].transpose(1, -1)[..., 0],
    "an axis of one, gone": lambda x: x[:, 2:3].squeeze(1)[1],
    "every axis of one, gone": lambda x: x[:1, 2:3, 3:].squeeze(),
    "one of the parts": lambda x: x.split([1, 3], 1)[1].unbind(-1)[2],
    "as it is": lambda x: x.view(3, 4, 5).detach()[0].expand(4, 5),
}


@pytest.mark.parametrize("view", BOXES.values(), ids=BOXES)
def test_a_view_shows_the_box_at_its_place(view) -> None:
    base = torch.arange(60.0).view(3, 4, 5)
    with Followed(base) as followed:
        shown = view(base)
    _, place = followed.found[id(shown)]
    box = base[tuple(slice(start, stop) for start, stop in place.box)]
    kept = [dim for dim in place.dims if dim is not None]
    gone = [dim for dim in range(3) if dim not in kept]
    box = box.permute(kept + gone).flatten(len(kept)).squeeze(-1) if gone else box.permute(kept)
    for dim, own in enumerate(place.dims):
        box = box.unsqueeze(dim) if own is None else box
    assert torch.equal(box, shown)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x.view(12, 5),
        lambda x: x.expand(2, 3, 4, 5),
        lambda x: x.diagonal(),
        lambda x: x * 1,
    ],
)
def test_what_is_no_box_has_no_place(view) -> None:
    base = torch.arange(60.0).view(3, 4, 5)
    with Followed(base) as followed:
        shown = view(base)
    assert followed.found[id(shown)][1] is None


def test_boxes_overlap_where_they_share_an_entry_and_contain_what_they_hold() -> None:
    one, other, inner = ((0, 2), (0, 4)), ((1, 3), (3, 6)), ((1, 2), (1, 3))
    assert overlap(one, other)
    assert not overlap(inner, other)
    assert contains(one, inner)
    assert not contains(one, other)
    assert not contains(inner, one)
