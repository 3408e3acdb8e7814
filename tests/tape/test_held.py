"""Which tensors a module holds as plain attributes, and which are data."""

import torch
from torch import nn

from lightning_topo._tape.held import held_storages


def holding(**attributes):
    """A module with these attributes."""
    model = nn.Linear(2, 1)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def storages(*tensors):
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def test_parameters_and_buffers_are_not_among_them():
    model = holding(scale=torch.ones(3))
    model.register_buffer("mean", torch.zeros(2))
    assert held_storages(model) == storages(model.scale)


def test_what_is_data_is_left_out_with_its_views():
    batch = {"x": [torch.randn(4, 2)], "y": torch.zeros(4)}
    model = holding(batch=batch["x"][0][1:], labels=batch["y"], scale=torch.ones(3))
    assert held_storages(model, batch) == storages(model.scale)
    assert held_storages(model) == storages(model.scale, batch["x"][0], batch["y"])


def test_tensors_that_lie_in_no_storage_of_their_own_are_left_out():
    assert held_storages(holding(sparse=torch.eye(2).to_sparse(), nothing=None, text="x")) == frozenset()
    assert held_storages({"weight": torch.ones(2)}) == frozenset()


class Counted(dict):
    """A dictionary of a user's own, whose methods are not ours to call."""

    def values(self):
        raise AssertionError("the user's code runs")


def test_containers_are_read_by_their_own_methods_and_long_ones_not_at_all() -> None:
    model = holding(c=Counted(a=torch.ones(3)), losses=[0.0] * 10**6, d=[torch.ones(2)])
    expected = {dict.__getitem__(model.c, "a").untyped_storage()._cdata, model.d[0].untyped_storage()._cdata}
    assert held_storages(model) == expected
    model.losses[0] = torch.ones(1)
    assert held_storages(model) == expected
