"""The fast comparison against torch's own, element by element."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._watch import same_bits as same_bits
from lightning_topo._watch.same_bits import same_values

FORMATS = {
    "packed": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "with gaps": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "bfloat16": lambda x: x.bfloat16(),
    "complex": lambda x: torch.complex(x, x),
    "integers": lambda x: x.long(),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("fast", [True, False])
def test_every_layout(layout, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(same_bits, "_memcmp", None)
    points = torch.arange(24.0).view(1, 2, 3, 4)
    a = FORMATS[layout](points)
    assert same_values(a, a.clone())
    assert same_values(a, FORMATS[layout](points.clone()))
    for k in range(24):
        other = points.clone()
        other.view(-1)[k] += 64
        assert not same_values(a, FORMATS[layout](other))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]), min_size=2, max_size=4), st.data())
def test_as_element_by_element(values, data):
    others = [data.draw(st.sampled_from([value, 0.0, -0.0, float("nan")])) for value in values]
    expected = all(a == b or (a != a and b != b) for a, b in zip(values, others, strict=True))
    assert same_values(torch.tensor(values), torch.tensor(others)) is expected


def test_other_shapes_and_types_differ():
    assert not same_values(torch.zeros(2), torch.zeros(3))
    assert not same_values(torch.zeros(2, 3), torch.zeros(3, 2))
    assert same_values(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("fast", [True, False])
def test_compared_again_and_again(layout, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(same_bits, "_memcmp", None)
    a = FORMATS[layout](torch.arange(16.0).view(1, 1, 4, 4))
    b = a.clone()
    likeness = same_bits.Likeness(a, b)
    assert likeness.holds()
    assert likeness.holds()
    a[0, 0, 1, 2] += 64  # in place, in the same memory
    assert not likeness.holds()
    b.copy_(a)
    assert likeness.holds()
    a.data = a.data.clone()  # elsewhere, with the same values
    assert likeness.holds()
    a.data = a.data.mT  # the same memory, read in another order
    assert not likeness.holds()
    a.data = torch.zeros(3)
    assert not likeness.holds()


def test_zeros_of_both_signs_stay_alike_when_looked_at_again():
    a, b = torch.zeros(3), torch.zeros(3)
    alike = same_bits.Likeness(a, b)
    assert alike.holds()
    a.neg_()  # -0.0: other bits, the same values
    assert alike.holds()
    a[1] = 1.0
    assert not alike.holds()
