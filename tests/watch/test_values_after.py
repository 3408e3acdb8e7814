"""Which parameters are no longer as their update left them, at hardly any cost where nothing writes to them."""

import pytest
import torch

from lightning_topo._watch.values_after import ValuesAfter


def clamp(p):
    p.clamp_(-0.1, 0.1)


def through_data(p):
    p.data.clamp_(-0.1, 0.1)


def other_memory(p):
    p.data = p.data.clamp(-0.1, 0.1)


def back_and_forth(p):
    p.add_(1.0).sub_(1.0)


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-8, 8, size, generator=generator).double() for size in ((40, 30), (7,), (2, 3, 5, 5))]


@pytest.mark.parametrize("write", [clamp, through_data, other_memory])
def test_a_write_is_seen_and_from_then_on_values_are_kept(parameters, write):
    values = ValuesAfter()
    values.updated(parameters)
    assert (values.overwritten(), values.keeps) == ([], False)
    values.forget()
    values.updated(parameters)
    write(parameters[0])
    assert [id(p) for p in values.overwritten()] == [id(parameters[0])]
    assert values.keeps
    assert values.copies == {}
    values.forget()

    values.updated(parameters)
    wanted = [p.clone() for p in parameters]
    write(parameters[2])
    assert [id(p) for p in values.overwritten()] == [id(parameters[2])]
    assert all(torch.equal(values.copies[id(p)], before) for p, before in zip(parameters, wanted, strict=True))
    values.forget()
    assert (values.overwritten(), values.copies) == ([], {})


def test_what_is_written_back_is_no_change_once_values_are_kept(parameters):
    values = ValuesAfter()
    values.updated(parameters)
    clamp(parameters[1])
    values.overwritten()
    values.forget()
    values.updated(parameters)
    back_and_forth(parameters[0])
    assert values.overwritten() == []


def test_late_writes_through_data_are_seen_at_every_tenth_update(parameters):
    """Values are looked at seldom; what is counted as a write is seen at once."""
    values, seen = ValuesAfter(), []
    for step in range(1, 60):
        values.updated(parameters)
        if step > 31:
            parameters[0].data.neg_()
        if values.overwritten():
            seen.append(step)
        values.forget()
    assert seen == list(range(40, 60))
    values = ValuesAfter()
    for step in range(1, 60):
        values.updated(parameters)
        if step == 35:
            parameters[0].neg_()
        assert bool(values.overwritten()) == (step == 35)
        values.forget()
