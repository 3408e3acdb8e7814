"""Flat vectors where every process has all of them; for vectors in shards see tests/distributed."""

import pytest
import torch

from lightning_topo.stability._layout import WHOLE, Layout, flatten, is_sharded, local


def test_flat_vectors_and_shaped_pieces_are_each_others_inverse():
    like = [torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(()), torch.zeros(4, 0), torch.zeros(2).double()]
    layout, vector = Layout.of(like), torch.arange(9.0, dtype=torch.float64)
    pieces = layout.shaped(vector)
    assert [(piece.shape, piece.dtype) for piece in pieces] == [(t.shape, t.dtype) for t in like]
    assert torch.equal(flatten(pieces).double(), vector)
    assert torch.equal(layout.flatten(pieces), flatten(pieces))
    assert flatten([like[0]]).dtype is torch.float32
    total = vector.clone()
    layout.add(total, [pieces[0], None, pieces[2], pieces[3]], weight=2.0)
    assert total.tolist() == [3.0 * k for k in range(6)] + [6.0, 21.0, 24.0]
    assert (layout.n_entries(vector), layout.n_local, layout.longest(vector)) == (9, 9, 9)
    assert (WHOLE.n_entries(vector), WHOLE.longest(vector)) == (9, 9)


def test_one_value_per_parameter_or_per_entry_is_spread():
    layout = Layout.of([torch.zeros(2, 2), torch.zeros(1, dtype=torch.float64)])
    assert layout.spread([0.5, torch.tensor([2.0])]).tolist() == [0.5] * 4 + [2.0]
    assert layout.spread([torch.arange(4.0).view(2, 2), 1.0]).tolist() == [0.0, 1.0, 2.0, 3.0, 1.0]


def test_whole_vectors_need_no_other_process():
    """No process group has been started here: a collective would raise."""
    layout, vector = Layout.of([torch.zeros(3)]), torch.tensor([3.0, 0.0, 4.0])
    assert (layout.norm(vector), layout.dot(vector, vector), WHOLE.norm(vector)) == (5.0, 25.0, 5.0)
    assert (layout.anywhere(True), layout.anywhere(False), layout.extremes(1.0, 2.0)) == (True, False, (1.0, 2.0))
    assert layout.total(vector) is vector
    assert torch.equal(layout.noise(vector, 1), layout.noise(vector, 1))
    assert not torch.equal(layout.noise(vector, 1), layout.noise(vector, 2))
    assert not is_sharded(vector)
    assert local(vector) is vector


def test_sparse_gradients_have_their_zeros():
    sparse = torch.sparse_coo_tensor([[1]], [2.0], (3,), check_invariants=True)
    assert flatten([sparse]).tolist() == [0.0, 2.0, 0.0]


def test_values_of_other_parameters_are_refused():
    layout = Layout.of([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        layout.spread([1.0])
    with pytest.raises(RuntimeError):
        layout.shaped(torch.zeros(4))


def test_flat_shards_have_the_norm_of_whole_vectors_and_noise_of_their_own(monkeypatch):
    """Two processes: the first parameter lies in two parts, the second on both."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    whole = [torch.arange(1.0, 5.0), torch.tensor([7.0, 8.0])]
    parts = [[whole[0][:2], whole[1]], [whole[0][2:], whole[1]]]
    layouts = [Layout.flat(mine, [2, 1], [place, 0]) for place, mine in enumerate(parts)]
    vectors = [layout.flatten(mine) for layout, mine in zip(layouts, parts, strict=True)]
    assert sum(float(v @ v) for v in vectors) == pytest.approx(float(flatten(whole).square().sum()))
    for layout, vector, mine in zip(layouts, vectors, parts, strict=True):
        torch.testing.assert_close(layout.shaped(vector), mine)
    noise = [layout.noise(vector, 3) for layout, vector in zip(layouts, vectors, strict=True)]
    assert not torch.equal(noise[0][:2], noise[1][:2])
    assert torch.equal(noise[0][2:], noise[1][2:])
    assert torch.equal(noise[0], layouts[0].noise(vectors[0], 3))
